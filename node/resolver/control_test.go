package resolver

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
)

func TestControl(t *testing.T) {
	netns := jobNamespace(t)
	socket := filepath.Join(t.TempDir(), "resolver.sock")
	if _, err := NewClient(socket).Version(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without a resolver: %v", err)
	}
	// As one that was killed leaves it.
	if err := os.WriteFile(socket, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, Options{Socket: socket, Version: "1.2.3"})
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v, expected mode 0600", info.Mode(), err)
	}
	if v, err := c.Version(t.Context()); err != nil || v != (Version{Version: "1.2.3", PID: os.Getpid()}) {
		t.Errorf("version %+v, %v", v, err)
	}
	second := Options{Socket: socket, Log: logrus.NewEntry(logrus.New())}
	if err := Serve(t.Context(), second); !errdefs.IsUnavailable(err) {
		t.Errorf("second resolver: %v", err)
	}
	z := Zone{Netns: netns, Addr: netip.MustParseAddr(jobAddr), Names: map[string][]netip.Addr{"db": addrs("10.201.1.3")}, Upstreams: []string{"192.0.2.1"}}
	put(t, c, z)
	all, err := c.List(t.Context())
	if want := map[string]Zone{"job/1": z}; err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("zones %+v, %v, expected %+v", all, err, want)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Put(gone, "job/1", z); !errors.Is(err, context.Canceled) || errdefs.IsUnavailable(err) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestZoneRefused(t *testing.T) {
	c := start(t, Options{})
	for _, r := range []struct {
		spoil func(*Zone)
		want  string
	}{
		{func(z *Zone) { z.Netns = "netns" }, "absolute"},
		{func(z *Zone) { z.Addr = netip.Addr{} }, "IPv4"},
		{func(z *Zone) { z.Addr = netip.IPv6Loopback() }, "IPv4"},
		{func(z *Zone) { z.Names["a..b"] = nil }, "domain name"},
		{func(z *Zone) { z.Names[strings.Repeat("a", 64)] = nil }, "domain name"},
		{func(z *Zone) { z.Names[""] = nil }, "domain name"},
		{func(z *Zone) { z.Names["six"] = addrs("::1") }, "IPv4"},
		{func(z *Zone) { z.Upstreams = []string{"example.com"} }, "an address"},
		{func(z *Zone) { z.Upstreams = []string{jobAddr} }, "itself"},
		{func(z *Zone) { z.Upstreams = []string{"0.0.0.0"} }, "itself"},
	} {
		z := Zone{Netns: "/nowhere", Addr: netip.MustParseAddr(jobAddr), Names: map[string][]netip.Addr{}}
		r.spoil(&z)
		if err := c.Put(t.Context(), "job", z); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%+v: %v, expected it to say %q", z, err, r.want)
		}
	}
	for _, body := range []string{"", "{", `{"nets":"/x"}`} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://resolver/v1/zones/job", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("body %q: %s", body, res.Status)
		}
	}
}
