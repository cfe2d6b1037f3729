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
	"github.com/containerd/errdefs"
)

// Registry is what an operator says of one.
type Registry struct {
	PlainHTTP bool
}

// Prefix is a network.
type Prefix = netip.Prefix

// registryHosts is how builds speak to registries: from berthd, since it is berthd that has the layers. They name any host,
// and registries send them on to any; so it is by address that they are kept from the node.
func registryHosts(c Config) docker.RegistryHosts {
	g := guard{config: c}
	client := &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           g.dial,
		MaxIdleConns:          30,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       2 * time.Minute,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: 5 * time.Second,
		// Uploads over HTTP/2 are slow: as in BuildKit's own.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}}
	return docker.ConfigureDefaultRegistries(
		docker.WithClient(client),
		docker.WithPlainHTTP(func(host string) (bool, error) { return c.Registries[host].PlainHTTP, nil }),
	)
}

// guard keeps connections from the node.
type guard struct{ config Config }

func (g guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second, KeepAlive: time.Minute}
	if !g.named(address) {
		// The address that is connected to, after names are resolved: a name may mean another the next time.
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error { return g.check(address) }
	}
	return d.DialContext(ctx, network, address)
}

// named tells whether an operator named the registry, with its port or without.
func (g guard) named(address string) bool {
	if _, ok := g.config.Registries[address]; ok {
		return true
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != "443" && port != "80" {
		return false
	}
	_, ok := g.config.Registries[host]
	return ok
}

func (g guard) check(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("check address of registry: %w", err)
	}
	ip := ap.Addr().Unmap().WithZone("")
	refused := func(why string) error {
		return fmt.Errorf("registry at %s is refused: %s; an operator may name it in the configuration: %w", address, why, errdefs.ErrPermissionDenied)
	}
	if !ip.IsGlobalUnicast() {
		return refused("it is on the node or on a link of it")
	}
	for _, p := range g.config.Deny {
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
