package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

// reach is who should and who should not get an answer.
type reach struct {
	name, netns, addr string
	want              string // what the server sees the caller as; empty for no answer
}

func checkReach(t *testing.T, cases []reach) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := call(c.netns, c.addr)
			var timeout net.Error
			switch {
			case c.want == "" && err == nil:
				t.Errorf("%s answered %q, expected no answer", c.addr, got)
			case c.want == "" && (!errors.As(err, &timeout) || !timeout.Timeout()):
				t.Errorf("%s: %v, expected a time-out", c.addr, err)
			case c.want != "" && err != nil:
				t.Errorf("%s: %v", c.addr, err)
			case got != c.want:
				t.Errorf("%s sees %q, expected %q", c.addr, got, c.want)
			}
		})
	}
}

func TestReach(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	p := openPool(t, testConfig(t.TempDir()))
	open, closed, meta := take(t, p, "open", "open"), take(t, p, "closed", "closed"), take(t, p, "meta", "metadata")
	a, err := p.Join(t.Context(), open, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Join(t.Context(), open, "b", 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.Join(t.Context(), closed, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, "", "0.0.0.0:5000")
	echo(t, "", "0.0.0.0:5001")
	for _, ns := range []string{open.Netns, closed.Netns, a.Netns, b.Netns} {
		echo(t, ns, "0.0.0.0:5432")
	}
	at := func(a netip.Addr, port string) string { return net.JoinHostPort(a.String(), port) }

	checkReach(t, []reach{
		{"outside, masqueraded", open.Netns, "203.0.113.10:7", "203.0.113.1"},
		{"outside from a service", a.Netns, "203.0.113.10:7", "203.0.113.1"},
		{"outside denied", open.Netns, "203.0.113.11:7", ""},
		{"outside denied to a service", a.Netns, "203.0.113.11:7", ""},
		{"metadata by default", open.Netns, "169.254.169.254:7", ""},
		{"metadata allowed", meta.Netns, "169.254.169.254:7", "203.0.113.1"},
		{"allowed beside default deny", closed.Netns, "203.0.113.10:7", "203.0.113.1"},
		{"default deny", closed.Netns, "203.0.113.11:7", ""},

		{"node's allowed port by its gateway address", open.Netns, "169.254.1.1:5000", open.Address.String()},
		{"node's allowed port by its outer address", open.Netns, "203.0.113.1:5000", open.Address.String()},
		{"node's allowed port from a service", a.Netns, "203.0.113.1:5000", open.Address.String()},
		{"node's other port", open.Netns, "169.254.1.1:5001", ""},
		{"node's other port by its outer address", open.Netns, "203.0.113.1:5001", ""},
		{"node's port of another profile", closed.Netns, "169.254.1.1:5000", ""},

		{"service to service, same port", a.Netns, at(b.Addr, "5432"), a.Addr.String()},
		{"service to itself", a.Netns, at(a.Addr, "5432"), a.Addr.String()},
		{"job to service", open.Netns, at(b.Addr, "5432"), open.Gateway.String()},
		{"service to job", a.Netns, at(open.Gateway, "5432"), a.Addr.String()},

		{"job to job by uplink", open.Netns, at(closed.Address, "5432"), ""},
		{"job to job by subnet", open.Netns, at(closed.Gateway, "5432"), ""},
		{"job to another's service", open.Netns, at(other.Addr, "5432"), ""},
	})

	if got, err := net.DialTimeout("tcp4", at(open.Address, "5432"), time.Second); err != nil {
		t.Errorf("node to job: %v", err)
	} else {
		got.Close()
	}
}

// TestForging gives a job every privilege in its own namespace.
func TestForging(t *testing.T) {
	nodetest.NeedRoot(t)
	o := newOutside(t)
	p := openPool(t, testConfig(t.TempDir()))
	evil, victim := take(t, p, "evil", "open"), take(t, p, "victim", "open")
	echo(t, "", "0.0.0.0:5000")
	echo(t, victim.Netns, "0.0.0.0:5432")

	var heard net.PacketConn
	if err := namespace.Do(o.netns, func() (err error) {
		heard, err = net.ListenPacket("udp4", "203.0.113.10:9")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { tidy(t, heard.Close()) }()
	if err := namespace.Do(evil.Netns, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.FlushRuleset()
		return conn.Flush()
	}); err != nil {
		t.Fatal(err)
	}

	send := func(from netip.Addr, to, text string) {
		t.Helper()
		if err := namespace.Do(evil.Netns, func() error { return forge(from, to, 9, text) }); err != nil {
			t.Fatal(err)
		}
	}
	// The true packets are sent last: what came before them has been dropped.
	expect := func(who string, heard net.PacketConn, want string) {
		t.Helper()
		tidy(t, heard.SetReadDeadline(time.Now().Add(2*time.Second)))
		buf := make([]byte, 100)
		n, _, err := heard.ReadFrom(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%s heard %q (%v), expected only %q", who, buf[:n], err, want)
		}
	}
	send(victim.Address, "203.0.113.10", "as the victim")
	send(netip.MustParseAddr("203.0.113.77"), "203.0.113.10", "as a neighbour of the node")
	send(nodeAddr, "203.0.113.10", "as the node")
	send(netip.MustParseAddr("10.201.9.9"), "203.0.113.10", "as nobody")
	send(evil.Address, "203.0.113.10", "as itself")
	expect("outside", heard, "as itself")

	bridge, err := netlink.LinkByName(evil.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	// The victim's addresses routed to the node in every way there is, and
	// one of the node's over the bridge.
	if err := namespace.Do(evil.Netns, func() error {
		run(t, "ip", "route", "add", victim.Address.String(), "via", nodeAddr.String(), "dev", "up0", "onlink")
		run(t, "ip", "route", "add", victim.Subnet.String(), "via", nodeAddr.String(), "dev", "up0", "onlink")
		run(t, "ip", "route", "add", "203.0.113.1", "dev", "eth0")
		run(t, "ip", "neigh", "add", "203.0.113.1", "lladdr", bridge.Attrs().HardwareAddr.String(), "dev", "eth0")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	node, err := net.ListenPacket("udp4", "0.0.0.0:9")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { tidy(t, node.Close()) }()
	send(evil.Address, "203.0.113.1", "over the bridge")
	send(evil.Gateway, "203.0.113.1", "over the bridge with its address there")
	send(victim.Address, nodeAddr.String(), "as the victim")
	send(evil.Address, nodeAddr.String(), "over the uplink")
	expect("node", node, "over the uplink")
	checkReach(t, []reach{
		{"victim by uplink", evil.Netns, victim.Address.String() + ":5432", ""},
		{"victim by subnet", evil.Netns, victim.Gateway.String() + ":5432", ""},
		{"control: the node", evil.Netns, "169.254.1.1:5000", evil.Address.String()},
	})
}

// forge sends a UDP packet with a source of its own choice.
func forge(from netip.Addr, to string, port uint16, text string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	dst := netip.MustParseAddr(to).As4()
	packet := make([]byte, 28, 28+len(text)) // the kernel fills in length, id and checksum
	packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(packet[12:], from.AsSlice())
	copy(packet[16:], dst[:])
	binary.BigEndian.PutUint16(packet[20:], 1234)
	binary.BigEndian.PutUint16(packet[22:], port)
	binary.BigEndian.PutUint16(packet[24:], uint16(8+len(text)))
	return unix.Sendto(fd, append(packet, text...), 0, &unix.SockaddrInet4{Addr: dst})
}

// TestNodeForwardsPort: a port that the host forwards to a container of its
// own is a port of the node.
func TestNodeForwardsPort(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	config := testConfig(t.TempDir())
	config.Egress["published"] = Egress{Node: []string{"tcp/8088"}}
	p := openPool(t, config)
	open, published := take(t, p, "open", "open"), take(t, p, "published", "published")
	rule := []string{"PREROUTING", "-p", "tcp", "-d", "203.0.113.1", "--dport", "8088", "-j", "DNAT", "--to-destination", "203.0.113.10:7"}
	run(t, append([]string{"iptables", "-t", "nat", "-A"}, rule...)...)
	t.Cleanup(func() { run(t, append([]string{"iptables", "-t", "nat", "-D"}, rule...)...) })
	checkReach(t, []reach{
		{"not allowed", open.Netns, "203.0.113.1:8088", ""},
		{"allowed", published.Netns, "203.0.113.1:8088", "203.0.113.1"},
	})
}

func TestForwardPolicyDrop(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	run(t, "iptables", "-P", "FORWARD", "DROP")
	t.Cleanup(func() { run(t, "iptables", "-P", "FORWARD", "ACCEPT") })
	for _, docker := range []bool{false, true} {
		chain := "FORWARD"
		if docker {
			chain = "DOCKER-USER"
		}
		t.Run(chain, func(t *testing.T) {
			if docker {
				run(t, "iptables", "-N", "DOCKER-USER")
				run(t, "iptables", "-A", "DOCKER-USER", "-j", "RETURN")
				run(t, "iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
				t.Cleanup(func() {
					run(t, "iptables", "-D", "FORWARD", "-j", "DOCKER-USER")
					run(t, "iptables", "-F", "DOCKER-USER")
					run(t, "iptables", "-X", "DOCKER-USER")
				})
			}
			dir := filepath.Join(t.TempDir(), "netns")
			before := state(t, dir)
			p, err := Open(t.Context(), testConfig(dir), testLog())
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Adopt(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			once := state(t, dir)
			if !strings.Contains(once, "-A "+chain+" -i but-+ -j ACCEPT") {
				t.Errorf("no accepting rule in %s:\n%s", chain, once)
			}
			if err := p.AllowForwarding(); err != nil {
				t.Fatal(err)
			}
			if again := state(t, dir); again != once {
				t.Errorf("allowing twice changed\n%s\nto\n%s", once, again)
			}
			n := take(t, p, "job", "open")
			a, err := p.Join(t.Context(), n, "a", 0)
			if err != nil {
				t.Fatal(err)
			}
			b, err := p.Join(t.Context(), n, "b", 1)
			if err != nil {
				t.Fatal(err)
			}
			echo(t, b.Netns, "0.0.0.0:5432")
			checkReach(t, []reach{
				{"outside", n.Netns, "203.0.113.10:7", "203.0.113.1"},
				{"service to service", a.Netns, b.Addr.String() + ":5432", a.Addr.String()},
			})
			release(t, p, n)
			if err := p.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := state(t, dir); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

func TestInsideNamespace(t *testing.T) {
	nodetest.NeedRoot(t)
	p := openPool(t, testConfig(t.TempDir()))
	n := take(t, p, "job", "open")
	e, err := p.Join(t.Context(), n, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, netns := range []string{n.Netns, e.Netns} {
		if err := namespace.Do(netns, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
			if err != nil {
				t.Errorf("unprivileged ping: %v", err)
			} else {
				tidy(t, unix.Close(fd))
			}
			ifaces, err := os.ReadFile("/proc/thread-self/net/if_inet6")
			for line := range strings.Lines(string(ifaces)) {
				if !strings.HasSuffix(strings.TrimSpace(line), "lo") {
					t.Errorf("IPv6 address: %s", line)
				}
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	addrs, err := os.ReadFile("/proc/self/net/if_inet6")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(addrs)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "lo") {
			t.Errorf("IPv6 address on the node: %s", line)
		}
	}

	// A published port, as docker containers of the job will have.
	echo(t, e.Netns, "0.0.0.0:80")
	if err := namespace.Do(n.Netns, func() error {
		run(t, "nft", "add", "element", "ip", JobTable, JobPorts, "{ tcp . 8080 : "+e.Addr.String()+" . 80 }")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	checkReach(t, []reach{
		{"by localhost", n.Netns, "127.0.0.1:8080", n.Gateway.String()},
		{"by the job's address", n.Netns, n.Gateway.String() + ":8080", n.Gateway.String()},
		{"by a service", e.Netns, n.Gateway.String() + ":8080", n.Gateway.String()},
	})
}
