package resolver

import (
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

// TestJobNetwork: a job and its services resolve names, and releasing the
// network after the zone leaves nothing.
func TestJobNetwork(t *testing.T) {
	nodetest.NeedRoot(t)
	up := newUpstream(t, "127.0.0.1:0", answerA("192.0.2.1"))
	c := start(t, Options{})
	pool, err := network.Open(t.Context(), network.Config{
		Instance: "r",
		Subnet:   netip.MustParsePrefix("10.201.0.0/16"),
		Uplinks:  netip.MustParsePrefix("100.64.0.0/16"),
		Dir:      t.TempDir(),
		Egress:   map[string]network.Egress{"closed": {Default: "deny"}},
	}, logrus.NewEntry(logrus.New()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pool.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := pool.Adopt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	n, err := pool.Take(t.Context(), "job/1", "closed")
	if err != nil {
		t.Fatal(err)
	}
	if n.Gateway.String() != jobAddr {
		t.Fatalf("gateway %s, expected %s", n.Gateway, jobAddr)
	}
	e, err := pool.Join(t.Context(), n, "postgres", 0)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, Zone{
		Netns: n.Netns, Addr: n.Gateway, Upstreams: []string{up.addr},
		Names: map[string][]netip.Addr{"build": {n.Gateway}, e.Name: {e.Addr}},
	})
	for _, netns := range []string{n.Netns, e.Netns} {
		for name, want := range map[string]string{
			"build.":             "NOERROR 10.201.1.1",
			"postgres.":          "NOERROR " + e.Addr.String(),
			"elsewhere.example.": "NOERROR 192.0.2.1",
		} {
			for _, transport := range []string{"udp", "tcp"} {
				if got := said(query(t, netns, transport, name, dns.TypeA)); got != want {
					t.Errorf("%s from %s by %s: %s, expected %s", name, netns, transport, got, want)
				}
			}
		}
	}
	if err := c.Delete(t.Context(), "job/1"); err != nil {
		t.Fatal(err)
	}
	if err := pool.Release(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(t.Context(), "job/1", Zone{Netns: n.Netns, Addr: n.Gateway}); !errdefs.IsNotFound(err) {
		t.Errorf("zone of a released network: %v", err)
	}
}
