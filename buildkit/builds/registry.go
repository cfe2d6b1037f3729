package builds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// anyRegistry is the directory of those that have none of their own.
const anyRegistry = "_default"

// registryHosts is how builds find registries. It is one for all jobs, since BuildKit keeps what it says for whoever comes
// next: whose network is meant is told by each request.
//
// An operator's directory of hosts.toml files, as containerd's, tells mirrors and certificates. Who is named there is
// reached from the node, may be on it, and may speak plain HTTP. All others are reached from the job's network.
func registryHosts(c Config) docker.RegistryHosts {
	return func(registry string) ([]docker.RegistryHost, error) {
		var dir string
		var err error
		if c.HostsDir != "" {
			if dir, err = config.HostDirFromRoot(c.HostsDir)(registry); err != nil && !errdefs.IsNotFound(err) {
				return nil, fmt.Errorf("read configuration of registry %s: %w", registry, err)
			}
		}
		named := dir != "" && filepath.Base(dir) != anyRegistry
		g := &guard{named: map[string]bool{}, deny: c.Deny}
		options := config.HostOptions{UpdateClient: func(client *http.Client) error {
			return dress(client, &way{registry: registry, named: named, guard: g})
		}}
		if dir != "" {
			options.HostDir = func(string) (string, error) { return dir, nil }
		}
		if !named {
			options.DefaultScheme = "https"
		}
		hosts, err := config.ConfigureHosts(context.Background(), options)(registry)
		if err != nil {
			return nil, fmt.Errorf("read configuration of registry %s: %w", registry, err)
		}
		for _, h := range hosts {
			// Of those that have no directory, the mirrors alone are the operator's.
			if named || dir != "" && h.Host != registry && (registry != hub || h.Host != hubHost) {
				g.named[withPort(h.Host, h.Scheme)] = true
			}
		}
		return hosts, nil
	}
}

// hub is Docker Hub, and the host that answers for it.
const (
	hub     = "docker.io"
	hubHost = "registry-1.docker.io"
)

// dress has a client go a way. It may be called again for a client that is made from another.
func dress(client *http.Client, w *way) error {
	switch t := client.Transport.(type) {
	case *way:
		return nil
	case *http.Transport:
		// Uploads over HTTP/2 are slow: as in BuildKit's own.
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		w.base = t
		client.Transport = w
		return nil
	}
	return fmt.Errorf("configure registry: transport is %T: %w", client.Transport, errdefs.ErrNotImplemented)
}

// way is how a host of a registry is reached, by any job.
type way struct {
	registry string
	named    bool // by an operator, by a directory of its own
	guard    *guard
	base     *http.Transport
}

// RoundTrip sends a request as the job that its context tells. There is no other way.
func (w *way) RoundTrip(r *http.Request) (*http.Response, error) {
	at, ok := r.Context().Value(visitKey{}).(visit)
	if !ok {
		closeBody(r)
		return nil, fmt.Errorf("ask registry %s: no job asks: %w", w.registry, errdefs.ErrPermissionDenied)
	}
	return at.roundTrip(w, r)
}

// fromNode tells whether a host is the operator's.
func (w *way) fromNode(u *url.URL) bool { return w.named || w.guard.named[withPort(u.Host, u.Scheme)] }

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

func withPort(host, scheme string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	if scheme == "http" {
		return net.JoinHostPort(host, "80")
	}
	return net.JoinHostPort(host, "443")
}

// guard keeps connections that are made from the node from ending there.
type guard struct {
	named map[string]bool // by an operator; by host and port
	deny  []netip.Prefix
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialPatience, KeepAlive: time.Minute}
	if !g.named[address] {
		// The address that is connected to, after names are resolved: a name may mean another the next time.
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error { return g.check(address) }
	}
	return d.DialContext(ctx, network, address)
}

// check refuses the node, and what is on a link of it.
func (g *guard) check(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("check address of registry: %w", err)
	}
	ip := ap.Addr().Unmap().WithZone("")
	refused := func(why string) error {
		return fmt.Errorf("registry at %s is refused: %s; an operator may name it by a hosts.toml in registries.hosts_dir: %w",
			address, why, errdefs.ErrPermissionDenied)
	}
	if !ip.IsGlobalUnicast() {
		return refused("it is on the node or on a link of it")
	}
	for _, p := range g.deny {
		if p.Contains(ip) {
			return refused("it is in a network that registries may not be in")
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return errors.Join(errors.New("read the node's addresses"), err)
	}
	for _, a := range own {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if has, ok := netip.AddrFromSlice(n.IP); ok && has.Unmap() == ip {
			return refused("it is the node")
		}
	}
	return nil
}
