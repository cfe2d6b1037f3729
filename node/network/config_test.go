package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

func TestConfigRefused(t *testing.T) {
	for _, c := range []struct {
		spoil func(*Config)
		want  string
	}{
		{func(c *Config) { c.Instance = "" }, "instance"},
		{func(c *Config) { c.Instance = "toolong" }, "instance"},
		{func(c *Config) { c.Instance = "a-b" }, "instance"},
		{func(c *Config) { c.Subnet = netip.Prefix{} }, "subnet"},
		{func(c *Config) { c.Subnet = netip.MustParsePrefix("10.0.0.0/8") }, "subnet"},
		{func(c *Config) { c.Subnet = netip.MustParsePrefix("10.201.0.0/24") }, "subnet"},
		{func(c *Config) { c.Subnet = netip.MustParsePrefix("10.201.0.1/16") }, "subnet"},
		{func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/16") }, "subnet"},
		{func(c *Config) { c.Uplinks = netip.MustParsePrefix("100.64.0.0/25") }, "at least /24"},
		{func(c *Config) { c.Uplinks = netip.MustParsePrefix("10.201.3.0/24") }, "overlap subnet"},
		{func(c *Config) { c.Pool = -1 }, "pool"},
		{func(c *Config) { c.Pool = 256 }, "pool"},
		{func(c *Config) { c.Dir = "run" }, "directory"},
		{func(c *Config) { c.MTU = 100 }, "mtu"},
	} {
		config := testConfig("/run/netns")
		if err := config.validate(); err != nil {
			t.Fatal(err)
		}
		c.spoil(&config)
		err := config.validate()
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, expected it to name %q", config, err, c.want)
		}
	}
}

// TestNames: names fit the kernel's limit, however large the numbers.
func TestNames(t *testing.T) {
	config := testConfig("/run/netns")
	config.Instance = "wxyz"
	config.Subnet = netip.MustParsePrefix("10.16.0.0/12")
	config.Uplinks = netip.MustParsePrefix("100.64.0.0/12")
	p := &Pool{config: config}
	n := config.network(config.slots())
	for _, name := range []string{n.Bridge, n.Uplink, config.link(routerLink, n.Slot), p.endpointLink(n, maxEndpoints-1)} {
		if len(name) > 15 {
			t.Errorf("%s has %d characters", name, len(name))
		}
	}
	if want := "10.31.255.0/24 10.31.255.1 100.64.15.255"; strings.Join([]string{n.Subnet.String(), n.Gateway.String(), n.Address.String()}, " ") != want {
		t.Errorf("%+v, expected %s", n, want)
	}
}

func TestEgress(t *testing.T) {
	v, err := Egress{
		Node:    []string{"tcp/5000", "udp/6000-6010"},
		Allow:   []string{"192.0.2.7 tcp/443", "10.1.2.3/8"},
		Deny:    []string{"198.51.100.0/24"},
		Default: "deny",
	}.verdicts("gpu.a-1")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"tcp dport 5000 accept", "udp dport 6000-6010 accept"}; !slices.Equal(v.Node, want) {
		t.Errorf("node %q, expected %q", v.Node, want)
	}
	if want := []string{"ip daddr 192.0.2.7/32 tcp dport 443 accept", "ip daddr 10.0.0.0/8 accept", "ip daddr 198.51.100.0/24 drop"}; !slices.Equal(v.Outside, want) {
		t.Errorf("outside %q, expected %q", v.Outside, want)
	}
	if v.Default != "drop" {
		t.Errorf("default %q", v.Default)
	}
}

func TestEgressRefused(t *testing.T) {
	for _, c := range []struct {
		profile string
		egress  Egress
		want    string
	}{
		{"p q", Egress{}, "name"},
		{"p;drop", Egress{}, "name"},
		{"p", Egress{Default: "maybe"}, "allow or deny"},
		{"p", Egress{Node: []string{"5000"}}, "port such as"},
		{"p", Egress{Node: []string{"icmp/1"}}, "port such as"},
		{"p", Egress{Node: []string{"tcp/0"}}, "port such as"},
		{"p", Egress{Node: []string{"tcp/70000"}}, "port such as"},
		{"p", Egress{Node: []string{"tcp/20-10"}}, "port such as"},
		{"p", Egress{Node: []string{"tcp/80; accept"}}, "port such as"},
		{"p", Egress{Allow: []string{""}}, "expected an address"},
		{"p", Egress{Allow: []string{"example.com"}}, "expected an address"},
		{"p", Egress{Allow: []string{"10.0.0.0/8 tcp/443 x"}}, "expected an address"},
		{"p", Egress{Deny: []string{"fd00::/8"}}, "IPv4"},
	} {
		_, err := c.egress.verdicts(c.profile)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %+v: %v, expected it to say %q", c.profile, c.egress, err, c.want)
		}
	}
}

func TestOverlap(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	for _, c := range []struct{ route, want string }{
		{"10.0.0.0/8", `network subnet 10.201.0.0/16 overlaps the host's route to 10.0.0.0/8 on "out0"`},
		{"10.201.7.0/24", "network subnet"},
		{"100.64.0.9/32", "network uplinks"},
		{"10.200.0.0/16", ""},
		{"0.0.0.0/1", ""},
	} {
		for _, table := range []string{"main", "52"} {
			run(t, "ip", "route", "add", c.route, "dev", "out0", "table", table)
			p, err := Open(t.Context(), testConfig(t.TempDir()), testLog())
			run(t, "ip", "route", "del", c.route, "dev", "out0", "table", table)
			if err == nil {
				err = p.Close(t.Context())
			}
			if c.want == "" && err != nil || c.want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("route %s in %s: %v, expected %q", c.route, table, err, c.want)
			}
		}
	}
}

func TestDefaultMTU(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	p := openPool(t, testConfig(t.TempDir()))
	if p.config.MTU != 1400 {
		t.Errorf("MTU %d, expected that of the default route, 1400", p.config.MTU)
	}
}
