package network

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"

	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

// crashEnv makes the test binary a berthd that is about to be killed.
const crashEnv = "BERTH_TEST_CRASH"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		crash(dir)
	}
	nodetest.Main(m)
}

func testLog() *logrus.Entry {
	log := logrus.New()
	log.SetLevel(logrus.WarnLevel)
	return logrus.NewEntry(log)
}

func testConfig(dir string) Config {
	return Config{
		Instance: "t",
		Subnet:   netip.MustParsePrefix("10.201.0.0/16"),
		Uplinks:  netip.MustParsePrefix("100.64.0.0/16"),
		Dir:      dir,
		Egress: map[string]Egress{
			"open":     {Node: []string{"tcp/5000", "udp/9"}, Deny: []string{"203.0.113.11"}},
			"closed":   {Allow: []string{"203.0.113.10 tcp/7"}, Default: "deny"},
			"metadata": {Allow: []string{"169.254.169.254 tcp/7"}, Default: "deny"},
		},
	}
}

func openPool(t testing.TB, config Config) *Pool {
	t.Helper()
	p, err := Open(t.Context(), config, testLog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := p.Adopt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return p
}

func take(t testing.TB, p *Pool, job, profile string) Network {
	t.Helper()
	n, err := p.Take(t.Context(), job, profile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release(t, p, n) })
	return n
}

func release(t testing.TB, p *Pool, n Network) {
	t.Helper()
	if err := p.Release(context.Background(), n); err != nil {
		t.Fatal(err)
	}
}

// crash takes networks, tells which, and waits to be killed.
func crash(dir string) {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	config := testConfig(dir)
	config.Pool = 1
	p, err := Open(ctx, config, testLog())
	must(err)
	must(p.Adopt(ctx, nil))
	kept, err := p.Take(ctx, "kept", "open")
	must(err)
	lost, err := p.Take(ctx, "lost", "open")
	must(err)
	_, err = p.Join(ctx, lost, "postgres", 0)
	must(err)
	must(json.NewEncoder(os.Stdout).Encode([]Network{kept, lost}))
	select {}
}

// outside is a host beyond the node, with echo servers on port 7 of all its
// addresses. It knows no way back to the jobs' networks.
type outside struct {
	netns string
}

func newOutside(t testing.TB) outside {
	t.Helper()
	o := outside{netns: filepath.Join(t.TempDir(), "outside")}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(namespace.Create(o.netns, func() error { return setUp("lo") }))
	t.Cleanup(func() { tidy(t, namespace.Remove(o.netns)) })
	p := &Pool{config: Config{MTU: 1400}}
	check(p.addVeth("out0", 0, o.netns, "eth0"))
	t.Cleanup(func() { tidy(t, removeLink("out0")) })
	check(setAddr("out0", netip.MustParsePrefix("203.0.113.1/24")))
	check(addDefaultRoute("out0", netip.MustParseAddr("203.0.113.10")))
	check(namespace.Do(o.netns, func() error {
		for _, a := range []string{"203.0.113.10/24", "203.0.113.11/24", "169.254.169.254/32"} {
			if err := setAddr("eth0", netip.MustParsePrefix(a)); err != nil {
				return err
			}
		}
		return awaitCarrier(t.Context(), "eth0")
	}))
	check(awaitCarrier(t.Context(), "out0"))
	echo(t, o.netns, "0.0.0.0:7")
	return o
}

// echo answers every connection with the address that it came from.
func echo(t testing.TB, netns, addr string) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	}
	if netns != "" {
		inner := listen
		listen = func() error { return namespace.Do(netns, inner) }
	}
	if err := listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host) // the caller will miss it
			c.Close()
		}
	}()
}

// call connects from a namespace and returns what an echo server said.
func call(netns, addr string) (string, error) {
	var said []byte
	err := namespace.Do(netns, func() error {
		c, err := net.DialTimeout("tcp4", addr, 400*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		said, err = io.ReadAll(c)
		return err
	})
	return string(said), err
}

// state is everything on the node that a pool may have changed.
func state(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		fmt.Fprintln(&b, "link", l.Attrs().Name)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	fmt.Fprintln(&b, "files", files)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, dir) {
			fmt.Fprintln(&b, "mount", line)
		}
	}
	for _, args := range [][]string{{"nft", "--stateless", "list", "ruleset"}, {"iptables-save"}, {"ip", "-4", "route", "show", "table", "all"}} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			t.Fatal(args, err)
		}
		for _, line := range strings.Split(string(out), "\n") {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				fmt.Fprintln(&b, line)
			}
		}
	}
	return b.String()
}

// tidy is for what a test does when it is over.
func tidy(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func run(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}
