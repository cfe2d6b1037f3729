package builds

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/resolver"
)

// registries are registries as a job reaches them: from its own network, by its own names, with logins and connections
// that no other job has.
//
// BuildKit shares what it knows of a registry among all that ask for one name: hosts, tokens, and a lock that is held while
// tokens are fetched. But one name is another registry in another job's network, and one that never answers would stop
// them all. So logging in is done here, below BuildKit, which never learns that a registry asked for it.
type registries struct {
	key      string // no other has it
	layers   *layers
	network  Network
	sessions *session.Manager

	ctx   context.Context
	end   context.CancelCauseFunc
	mu    sync.Mutex
	ways  map[*way]*clients
	conns map[*conn]struct{}
}

func newRegistries(j Job, l *layers, sessions *session.Manager) *registries {
	r := &registries{
		key: rand.Text(), layers: l, network: j.Network, sessions: sessions, ways: map[*way]*clients{}, conns: map[*conn]struct{}{},
	}
	r.ctx, r.end = context.WithCancelCause(context.Background())
	return r
}

// close ends all connections, and lets none be made.
func (r *registries) close() {
	r.end(errClosed)
	r.mu.Lock()
	conns := r.conns
	r.conns, r.ways = nil, nil
	r.mu.Unlock()
	r.layers.forget(r)
	for c := range conns {
		_ = c.Conn.Close() // it may be closed already
	}
}

// visit is what a context tells to those who ask registries: the job, and the sessions that may have a login.
type visit struct {
	*registries
	group session.Group
}

type visitKey struct{}

// with has what is asked for in a context be asked for by the job.
func (r *registries) with(ctx context.Context, g session.Group) context.Context {
	return context.WithValue(ctx, visitKey{}, visit{r, g})
}

// attempts are as many as containerd makes.
const attempts = 5

// roundTrip sends a request, and logs in as it is asked to.
func (v visit) roundTrip(w *way, r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	auth, err := v.authorizer(ctx, w, r.URL.Host)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	var answers []*http.Response
	for range attempts {
		out := r.Clone(ctx)
		if len(answers) > 0 && r.Body != nil && r.Body != http.NoBody {
			if r.GetBody == nil {
				break
			}
			if out.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		if err := auth.Authorize(ctx, out); err != nil {
			closeBody(out)
			return nil, fmt.Errorf("authorize: %w", err)
		}
		res, err := v.send(w, out)
		if err != nil || res.StatusCode != http.StatusUnauthorized {
			return res, err
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection may be used again
		res.Body.Close()
		answers = append(answers, res)
		if err := auth.AddResponses(ctx, answers); err != nil {
			return nil, fmt.Errorf("%s: %w", res.Status, err)
		}
	}
	return nil, fmt.Errorf("%s: %w", answers[len(answers)-1].Status, docker.ErrInvalidAuthorization)
}

// authorizer is BuildKit's, with a memory of the job's own for what the request is about.
func (v visit) authorizer(ctx context.Context, w *way, host string) (docker.Authorizer, error) {
	// It is no image's name, so that no image's memory is meant.
	about := fmt.Sprintf("job %s: %s at %s: %s", v.key, w.registry, host, strings.Join(docker.GetTokenScopes(ctx, nil), " "))
	client := &http.Client{Transport: plain{v.registries, w}}
	hosts, err := resolver.DefaultPool.GetResolver(func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{Client: client, Host: host}}, nil
	}, about, resolver.ScopeType{}, v.sessions, v.group).HostsFunc(host)
	if err != nil {
		return nil, err
	}
	return hosts[0].Authorizer, nil
}

// plain asks for tokens.
type plain struct {
	registries *registries
	way        *way
}

func (p plain) RoundTrip(r *http.Request) (*http.Response, error) { return p.registries.send(p.way, r) }

// maxConns is how many connections a job has to a registry at a time for one image. BuildKit has a limit like it, but for
// all jobs together by a registry's name: see New.
const maxConns = 10

// clients are a job's for one way.
type clients struct{ node, direct, own http.RoundTripper }

// errCut is of a connection that ended with its job. BuildKit tries again: another job may wait for what was fetched.
var errCut = fmt.Errorf("%w: %w", errClosed, net.ErrClosed)

// send sends a request from where it is for the job to be sent from: the node for hosts of the operator's and for the
// proxy of berthd's environment, and else the job's network.
func (r *registries) send(w *way, req *http.Request) (*http.Response, error) {
	res, err := r.trySend(w, req)
	if err != nil && r.ctx.Err() != nil {
		err = errors.Join(errCut, err)
	}
	return res, err
}

func (r *registries) trySend(w *way, req *http.Request) (*http.Response, error) {
	c, err := r.clients(w)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	if w.fromNode(req.URL) {
		return c.node.RoundTrip(req)
	}
	if r.owns(req.Context(), req.URL) {
		return c.own.RoundTrip(req)
	}
	if req.URL.Scheme == "https" {
		proxy, err := http.ProxyFromEnvironment(req)
		if err != nil {
			closeBody(req)
			return nil, fmt.Errorf("find proxy: %w", err)
		}
		if proxy != nil {
			return c.node.RoundTrip(req)
		}
	}
	return c.direct.RoundTrip(req)
}

func (r *registries) clients(w *way) (*clients, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ways == nil {
		return nil, errCut
	}
	if c := r.ways[w]; c != nil {
		return c, nil
	}
	node, direct := w.base.Clone(), w.base.Clone()
	node.MaxConnsPerHost, direct.MaxConnsPerHost = maxConns, maxConns
	node.DialContext = r.dialer(w.guard.dial)
	direct.Proxy, direct.DialContext = nil, r.dialer(r.dial)
	own := direct.Clone()
	if own.TLSClientConfig == nil {
		own.TLSClientConfig = &tls.Config{}
	}
	own.TLSClientConfig.InsecureSkipVerify = true // as docker does with those on the loopback
	c := &clients{node: node, direct: direct, own: docker.NewHTTPFallback(own)}
	r.ways[w] = c
	return c, nil
}

// owns tells whether a host is in the job's own networks: what is there may have any name, and needs no certificate.
func (r *registries) owns(ctx context.Context, u *url.URL) bool {
	if r.network == nil || u.Hostname() == hubHost {
		return false
	}
	addrs, err := r.network.Dialer().Lookup(ctx, u.Hostname())
	if err != nil {
		return false // a proxy may know it; else it is said when it is connected to
	}
	own := r.network.Own()
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return a.IsLoopback() || slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

func (r *registries) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if r.network == nil {
		return nil, fmt.Errorf("connect to registry at %s: the job has no network: %w", address, errdefs.ErrPermissionDenied)
	}
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	return r.network.Dialer().DialContext(ctx, network, address)
}

// dialPatience is how long a registry has to answer.
const dialPatience = 30 * time.Second

type dial func(ctx context.Context, network, address string) (net.Conn, error)

// dialer makes connections that end with the job.
func (r *registries) dialer(d dial) dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(r.ctx, func() { cancel(errClosed) })()
		c, err := d(ctx, network, address)
		if err != nil {
			return nil, err
		}
		held := &conn{c, r}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.conns == nil {
			return nil, errors.Join(errCut, c.Close())
		}
		r.conns[held] = struct{}{}
		return held, nil
	}
}

// conn is a connection to a registry.
type conn struct {
	net.Conn
	of *registries
}

// Close also forgets it.
func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
