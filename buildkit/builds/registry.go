package builds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// registryHosts is how builds speak to registries: from berthd, since it is berthd that has the layers. They name any
// host, and registries send them on to any; so it is by address that they are kept from the node.
//
// An operator's directory of hosts.toml files, as containerd's, tells mirrors and certificates. Who is named there may
// be on the node, and speak plain HTTP.
func registryHosts(c Config) docker.RegistryHosts {
	return func(registry string) ([]docker.RegistryHost, error) {
		var dir string
		var err error
		if c.HostsDir != "" {
			if dir, err = config.HostDirFromRoot(c.HostsDir)(registry); err != nil && !errdefs.IsNotFound(err) {
				return nil, fmt.Errorf("read configuration of registry %s: %w", registry, err)
			}
		}
		g := &guard{named: map[string]bool{}, deny: c.Deny}
		options := config.HostOptions{UpdateClient: g.dress}
		if dir != "" {
			options.HostDir = func(string) (string, error) { return dir, nil }
		} else {
			options.DefaultScheme = "https"
		}
		hosts, err := config.ConfigureHosts(context.Background(), options)(registry)
		if err != nil {
			return nil, fmt.Errorf("read configuration of registry %s: %w", registry, err)
		}
		if dir != "" {
			for _, h := range hosts {
				g.named[withPort(h.Host, h.Scheme)] = true
			}
		}
		return hosts, nil
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

// guard keeps connections from the node.
type guard struct {
	named map[string]bool // by an operator; by host and port
	deny  []netip.Prefix
}

// dress has a client connect by the guard. It is called before anything is named.
func (g *guard) dress(client *http.Client) error {
	t, ok := client.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("configure registry: transport is %T: %w", client.Transport, errdefs.ErrNotImplemented)
	}
	t.DialContext = g.dial
	// Uploads over HTTP/2 are slow: as in BuildKit's own.
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	return nil
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second, KeepAlive: time.Minute}
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
