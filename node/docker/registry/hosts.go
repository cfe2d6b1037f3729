package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Job is on whose behalf registries are reached. They name themselves, send on
// to wherever they like, and ask for tokens from anywhere: so it is from the
// job's network that all of it is asked for, and none of it is out of the
// job's own reach.
//
// Two things are reached from the node: the registries that its operator named
// by a hosts.toml, and the proxy of berthd's environment.
type Job struct {
	Dialer namespace.Dialer
	// Own are the networks where all that the job reaches is the job's.
	Own []netip.Prefix
}

// hub is Docker Hub, and the host that answers for it.
const (
	hub     = "docker.io"
	hubHost = "registry-1.docker.io"
)

// anyHost is the directory for hosts that have none of their own.
const anyHost = "_default"

// hosts are how a registry is reached. authentic tells that it is certainly
// the one of this name: the operator says where it is, or it has a certificate.
// What a job has in its own networks may have any name, and needs none.
func (r *Registry) hosts(ctx context.Context, domain string, job Job, login registry.AuthConfig, opts ...docker.AuthorizerOpt) (hosts []docker.RegistryHost, authentic bool, err error) {
	options := config.HostOptions{AuthorizerOpts: opts, Credentials: func(host string) (string, string, error) {
		// It is for that registry alone, and not for its mirrors.
		if host != domain && (domain != hub || host != hubHost) {
			return "", "", nil
		}
		if login.IdentityToken != "" {
			return "", login.IdentityToken, nil
		}
		return login.Username, login.Password, nil
	}}
	dir := ""
	if r.HostsDir != "" {
		if dir, err = config.HostDirFromRoot(r.HostsDir)(domain); err != nil && !errdefs.IsNotFound(err) {
			return nil, false, fmt.Errorf("configure registry %s: %w", domain, err)
		}
	}
	if dir != "" {
		options.HostDir = func(string) (string, error) { return dir, nil }
	}
	if dir == "" || filepath.Base(dir) == anyHost {
		way := &way{job: job, own: job.owns(ctx, domain)}
		if options.DefaultScheme = "https"; way.own {
			// As dockerd does with registries on the loopback.
			options.DefaultScheme, options.DefaultTLS = "http", &tls.Config{InsecureSkipVerify: true}
		}
		options.UpdateClient = way.dress
		if hosts, err = config.ConfigureHosts(ctx, options)(domain); err != nil {
			return nil, false, fmt.Errorf("configure registry %s: %w", domain, err)
		}
		for _, h := range hosts {
			if h.Host != domain && (domain != hub || h.Host != hubHost) {
				way.named = append(way.named, withPort(h.Host, h.Scheme))
			}
		}
		return hosts, !way.own, nil
	}
	if hosts, err = config.ConfigureHosts(ctx, options)(domain); err != nil {
		return nil, false, fmt.Errorf("configure registry %s: %w", domain, err)
	}
	return hosts, true, nil
}

// owns tells whether a host is in the job's own networks.
func (j Job) owns(ctx context.Context, domain string) bool {
	host, _, err := net.SplitHostPort(domain)
	if err != nil {
		host = domain
	}
	if host == hub {
		return false
	}
	addrs, err := j.Dialer.Lookup(ctx, host)
	if err != nil {
		return false // a proxy may know it; else it is said when it is connected to
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return a.IsLoopback() || slices.ContainsFunc(j.Own, func(p netip.Prefix) bool { return p.Contains(a) })
	})
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

// way is how connections are made.
type way struct {
	job Job
	// own tells that the registry is in the job's networks.
	own bool
	// named are mirrors that the operator has, by host and port.
	named []string
}

// dress has a client go this way.
func (w *way) dress(client *http.Client) error {
	if _, dressed := client.Transport.(*transport); dressed { // that of all hosts, for one with headers of its own
		return nil
	}
	t, ok := client.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("configure registry: transport is %T: %w", client.Transport, errdefs.ErrNotImplemented)
	}
	// Uploads over HTTP/2 are slow.
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	direct := t.Clone()
	direct.Proxy, direct.DialContext = nil, w.dial
	client.Transport = &transport{way: w, proxied: t, direct: direct}
	return nil
}

// dialPatience is how long a registry has to answer.
const dialPatience = 30 * time.Second

func (w *way) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	if slices.Contains(w.named, address) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return w.job.Dialer.DialContext(ctx, network, address)
}

// transport sends a request by the proxy of berthd's environment, if that is
// for it, and else from the job's network. It is apart from the dialer, which
// could not tell a proxy from a registry of the same name.
type transport struct {
	way             *way
	proxied, direct *http.Transport
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !t.way.own && r.URL.Scheme == "https" {
		if proxy, err := http.ProxyFromEnvironment(r); err != nil {
			return nil, fmt.Errorf("find proxy: %w", err)
		} else if proxy != nil {
			return t.proxied.RoundTrip(r)
		}
	}
	return t.direct.RoundTrip(r)
}

func (t *transport) CloseIdleConnections() {
	t.proxied.CloseIdleConnections()
	t.direct.CloseIdleConnections()
}
