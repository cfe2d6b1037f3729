package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"

	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

const jobAddr = "10.201.1.1"

// jobNamespace has the address that a job's resolver listens on.
func jobNamespace(t *testing.T) string {
	t.Helper()
	nodetest.NeedRoot(t)
	path := filepath.Join(t.TempDir(), "netns")
	if err := namespace.Create(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(jobAddr + "/32")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(lo, addr), netlink.LinkSetUp(lo))
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// start runs a resolver for the length of the test.
func start(t *testing.T, o Options) *Client {
	t.Helper()
	if o.Socket == "" {
		o.Socket = filepath.Join(t.TempDir(), "resolver.sock")
	}
	if o.ResolvConf == nil {
		o.ResolvConf = []string{filepath.Join(t.TempDir(), "none")}
	}
	o.Log = logrus.NewEntry(logrus.New())
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, o) }()
	c := NewClient(o.Socket)
	t.Cleanup(func() {
		c.Close()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := c.Version(t.Context()); err == nil {
			return c
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func put(t *testing.T, c *Client, z Zone) {
	t.Helper()
	if err := c.Put(t.Context(), "job/1", z); err != nil {
		t.Fatal(err)
	}
}

// query asks the job's resolver from inside its namespace.
func query(t *testing.T, netns, network, name string, qtype uint16) (*dns.Msg, error) {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, qtype)
	client := dns.Client{Net: network, Timeout: 6 * time.Second}
	var conn *dns.Conn
	if err := namespace.Do(netns, func() (err error) {
		conn, err = client.Dial(jobAddr + ":53")
		return err
	}); err != nil {
		return nil, err
	}
	defer conn.Close()
	m, _, err := client.ExchangeWithConn(q, conn)
	return m, err
}

// upstream serves on addr with both transports and counts queries.
type upstream struct {
	addr string
	mu   sync.Mutex
	seen []string
}

func newUpstream(t *testing.T, addr string, handle func(network string, q, m *dns.Msg)) *upstream {
	t.Helper()
	pc, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: pc.LocalAddr().String()}
	for _, s := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		network := "udp"
		if s.Listener != nil {
			network = "tcp"
		}
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			u.mu.Lock()
			u.seen = append(u.seen, network+" "+q.Question[0].Name)
			u.mu.Unlock()
			m := new(dns.Msg).SetReply(q)
			handle(network, q, m)
			if m.Id != 0 {
				_ = w.WriteMsg(m) // the resolver may have given up
			}
		})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := errors.Join(s.Shutdown(), <-ended); err != nil {
				t.Error(err)
			}
		})
	}
	return u
}

func (u *upstream) queries() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.seen...)
}

func answerA(addr string) func(string, *dns.Msg, *dns.Msg) {
	return func(_ string, q, m *dns.Msg) {
		m.Answer = []dns.RR{a(q.Question[0].Name, addr)}
	}
}

func a(name, addr string) dns.RR {
	return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(addr)}
}

// said is an answer in one line: the code, then the records' data.
func said(m *dns.Msg, err error) string {
	if err != nil {
		return err.Error()
	}
	line := dns.RcodeToString[m.Rcode]
	for _, rr := range m.Answer {
		line += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
	}
	return line
}

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestNames(t *testing.T) {
	netns := jobNamespace(t)
	c := start(t, Options{})
	up := newUpstream(t, "127.0.0.1:0", answerA("192.0.2.1"))
	put(t, c, Zone{
		Netns: netns, Addr: netip.MustParseAddr(jobAddr), Upstreams: []string{up.addr},
		Names: map[string][]netip.Addr{
			"postgres":       addrs("10.201.1.3"),
			"my__Db":         addrs("10.201.1.4"),
			"my-db":          addrs("10.201.1.4"),
			"many.example.":  addrs("10.201.1.5", "10.201.1.6"),
			"without-addrs.": nil,
		},
	})
	for _, q := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"postgres.", dns.TypeA, "NOERROR 10.201.1.3"},
		{"PostGres.", dns.TypeA, "NOERROR 10.201.1.3"},
		{"my__db.", dns.TypeA, "NOERROR 10.201.1.4"},
		{"many.example.", dns.TypeA, "NOERROR 10.201.1.5 10.201.1.6"},
		{"without-addrs.", dns.TypeA, "NOERROR"},
		{"postgres.", dns.TypeAAAA, "NOERROR"},
		{"postgres.", dns.TypeMX, "NOERROR"},
		{"3.1.201.10.in-addr.arpa.", dns.TypePTR, "NOERROR postgres."},
		{"4.1.201.10.in-addr.arpa.", dns.TypePTR, "NOERROR my-db. my__db."},
		{"elsewhere.example.", dns.TypeA, "NOERROR 192.0.2.1"},
		{"sub.postgres.", dns.TypeA, "NOERROR 192.0.2.1"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := said(query(t, netns, network, q.name, q.qtype)); got != q.want {
				t.Errorf("%s %s %s: %q, expected %q", network, q.name, dns.TypeToString[q.qtype], got, q.want)
			}
		}
	}
	if got := len(up.queries()); got != 4 {
		t.Errorf("upstream saw %q, expected only names that are not the job's", up.queries())
	}

	put(t, c, Zone{
		Netns: netns, Addr: netip.MustParseAddr(jobAddr),
		Names: map[string][]netip.Addr{"redis": addrs("10.201.1.7")},
	})
	if got := said(query(t, netns, "udp", "redis.", dns.TypeA)); got != "NOERROR 10.201.1.7" {
		t.Errorf("new name: %s", got)
	}
	if got := said(query(t, netns, "udp", "postgres.", dns.TypeA)); got != "SERVFAIL" {
		t.Errorf("old name: %s", got)
	}
}

func TestMalformed(t *testing.T) {
	netns := jobNamespace(t)
	c := start(t, Options{})
	put(t, c, Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Names: map[string][]netip.Addr{"db": addrs("10.201.1.3")}})
	for _, raw := range []string{"", "\x00", strings.Repeat("\xff", 600), "\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00"} {
		if err := namespace.Do(netns, func() error {
			conn, err := net.Dial("udp4", jobAddr+":53")
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte(raw))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := said(query(t, netns, "udp", "db.", dns.TypeA)); got != "NOERROR 10.201.1.3" {
		t.Errorf("after malformed queries: %s", got)
	}
}

func TestTruncation(t *testing.T) {
	netns := jobNamespace(t)
	c := start(t, Options{})
	up := newUpstream(t, "127.0.0.1:0", func(network string, q, m *dns.Msg) {
		if network == "udp" {
			m.Truncated = true
			return
		}
		for i := range 100 {
			m.Answer = append(m.Answer, a(q.Question[0].Name, fmt.Sprintf("192.0.2.%d", i)))
		}
	})
	var many []netip.Addr
	for i := range 100 {
		many = append(many, netip.AddrFrom4([4]byte{10, 201, 1, byte(i)}))
	}
	put(t, c, Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Upstreams: []string{up.addr}, Names: map[string][]netip.Addr{"many": many}})
	for _, name := range []string{"many.", "large.example."} {
		m, err := query(t, netns, "udp", name, dns.TypeA)
		if err != nil || !m.Truncated {
			t.Errorf("%s by UDP: %v, %v, expected a truncated answer", name, m, err)
		}
		m, err = query(t, netns, "tcp", name, dns.TypeA)
		if err != nil || m.Truncated || len(m.Answer) != 100 {
			t.Errorf("%s by TCP: %v, %v, expected 100 records", name, m, err)
		}
	}
}

func TestUpstreams(t *testing.T) {
	netns := jobNamespace(t)
	good := newUpstream(t, "127.0.0.1:0", answerA("192.0.2.1")).addr
	silent := newUpstream(t, "127.0.0.1:0", func(_ string, _, m *dns.Msg) { m.Id = 0 }).addr
	failing := newUpstream(t, "127.0.0.1:0", func(_ string, _, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }).addr
	lying := newUpstream(t, "127.0.0.1:0", func(_ string, _, m *dns.Msg) {
		m.Question[0].Name = "other.example."
		m.Answer = []dns.RR{a("other.example.", "192.0.2.66")}
	}).addr
	nobody := "127.0.0.1:1"
	flaky := 0
	var mu sync.Mutex
	lossy := newUpstream(t, "127.0.0.1:0", func(_ string, q, m *dns.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if flaky++; flaky == 1 {
			m.Id = 0
			return
		}
		answerA("192.0.2.2")("", q, m)
	}).addr
	missing := newUpstream(t, "127.0.0.1:0", func(_ string, _, m *dns.Msg) { m.Rcode = dns.RcodeNameError }).addr

	c := start(t, Options{})
	for _, q := range []struct {
		name      string
		upstreams []string
		want      string
		within    time.Duration
	}{
		{"one", []string{good}, "NOERROR 192.0.2.1", 500 * time.Millisecond},
		{"no server", nil, "SERVFAIL", 500 * time.Millisecond},
		{"nobody listens", []string{nobody}, "SERVFAIL", 500 * time.Millisecond},
		{"second after nobody", []string{nobody, good}, "NOERROR 192.0.2.1", 500 * time.Millisecond},
		{"second after failure", []string{failing, good}, "NOERROR 192.0.2.1", 500 * time.Millisecond},
		{"second after lie", []string{lying, good}, "NOERROR 192.0.2.1", 500 * time.Millisecond},
		{"only failures", []string{failing, failing}, "SERVFAIL", 500 * time.Millisecond},
		{"no such name is an answer", []string{missing, good}, "NXDOMAIN", 500 * time.Millisecond},
		{"second after silence", []string{silent, good}, "NOERROR 192.0.2.1", 1500 * time.Millisecond},
		{"lost packet", []string{lossy}, "NOERROR 192.0.2.2", 2 * time.Second},
		{"only silence", []string{silent, silent}, "SERVFAIL", 4900 * time.Millisecond},
	} {
		t.Run(q.name, func(t *testing.T) {
			put(t, c, Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Upstreams: q.upstreams})
			begin := time.Now()
			if got := said(query(t, netns, "udp", "x.example.", dns.TypeA)); got != q.want {
				t.Errorf("%q, expected %q", got, q.want)
			}
			if took := time.Since(begin); took > q.within {
				t.Errorf("took %s, expected at most %s", took, q.within)
			}
		})
	}
}

// TestFlood: queries without end get quick failures, and own names go on.
func TestFlood(t *testing.T) {
	netns := jobNamespace(t)
	silent := newUpstream(t, "127.0.0.1:0", func(_ string, _, m *dns.Msg) { m.Id = 0 })
	c := start(t, Options{})
	put(t, c, Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Upstreams: []string{silent.addr}, Names: map[string][]netip.Addr{"db": addrs("10.201.1.3")}})
	var conn *dns.Conn
	if err := namespace.Do(netns, func() (err error) {
		conn, err = dns.Dial("udp4", jobAddr+":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range maxForwarded + 1 {
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if got := said(conn.ReadMsg()); got != "SERVFAIL" {
		t.Errorf("one query too many: %s", got)
	}
	if got := said(query(t, netns, "udp", "db.", dns.TypeA)); got != "NOERROR 10.201.1.3" {
		t.Errorf("own name: %s", got)
	}
	begin := time.Now()
	if err := c.Delete(t.Context(), "job/1"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 500*time.Millisecond {
		t.Errorf("queries under way delayed the end by %s", took)
	}
}

func TestResolvConf(t *testing.T) {
	netns := jobNamespace(t)
	newUpstream(t, "127.0.0.2:53", answerA("192.0.2.2"))
	newUpstream(t, "127.0.0.3:53", answerA("192.0.2.3"))
	newUpstream(t, "127.0.0.53:53", answerA("192.0.2.53"))
	dir := t.TempDir()
	main, systemd := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "systemd.conf")
	c := start(t, Options{ResolvConf: []string{main, systemd}})
	put(t, c, Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr)})
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what, want string) {
		t.Helper()
		if got := said(query(t, netns, "udp", "x.example.", dns.TypeA)); got != want {
			t.Errorf("%s: %q, expected %q", what, got, want)
		}
	}
	expect("no files", "SERVFAIL")
	write(main, "search example.com\n")
	expect("no servers", "SERVFAIL")
	write(main, "nameserver 127.0.0.53\n")
	expect("stub alone", "NOERROR 192.0.2.53")
	write(systemd, "nameserver 127.0.0.3\n")
	expect("stub with systemd's file", "NOERROR 192.0.2.3")
	write(main, "nameserver 127.0.0.2\n")
	expect("real server", "NOERROR 192.0.2.2")
	if err := os.WriteFile(main, []byte("nameserver 127.0.0.3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect("changed in place", "NOERROR 192.0.2.3")
}

// TestZoneReleasesNamespace: sockets would keep a namespace alive after its
// job.
func TestZoneReleasesNamespace(t *testing.T) {
	netns := jobNamespace(t)
	silent := newUpstream(t, "127.0.0.1:0", func(_ string, _, m *dns.Msg) { m.Id = 0 })
	c := start(t, Options{})
	z := Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Upstreams: []string{silent.addr}}
	put(t, c, z)

	var idle net.Conn
	if err := namespace.Do(netns, func() (err error) {
		idle, err = net.Dial("tcp4", jobAddr+":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		if m, err := query(t, netns, "tcp", "x.example.", dns.TypeA); err == nil && m.Rcode != dns.RcodeServerFailure {
			t.Errorf("answer from a closed zone: %v", m)
		}
	}()
	for deadline := time.Now().Add(5 * time.Second); len(silent.queries()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("query does not arrive")
		}
	}
	for range 2 {
		if err := c.Delete(t.Context(), "job/1"); err != nil {
			t.Fatal(err)
		}
	}
	<-asking
	// The address is free again for both transports.
	if err := namespace.Do(netns, func() error {
		pc, err := net.ListenPacket("udp4", jobAddr+":53")
		if err != nil {
			return err
		}
		return pc.Close()
	}); err != nil {
		t.Error(err)
	}
	if err := idle.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection is still open: %v", err)
	}
	if all, err := c.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("zones %v, %v", all, err)
	}
	put(t, c, z)
}

// TestNamespaceReplaced: the same file bound to a new namespace is a new place.
func TestNamespaceReplaced(t *testing.T) {
	netns := jobNamespace(t)
	c := start(t, Options{})
	z := Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Names: map[string][]netip.Addr{"db": addrs("10.201.1.3")}}
	put(t, c, z)
	if err := namespace.Remove(netns); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(t.Context(), "job/1", z); !errdefs.IsNotFound(err) {
		t.Errorf("no namespace: %v", err)
	}
	again := jobNamespace(t)
	if err := os.Symlink(again, netns); err != nil {
		t.Fatal(err)
	}
	put(t, c, z)
	if got := said(query(t, again, "udp", "db.", dns.TypeA)); got != "NOERROR 10.201.1.3" {
		t.Errorf("in the new namespace: %s", got)
	}
}
