package builds

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerblob"
	"github.com/moby/buildkit/source/containerimage"
	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/source/local"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/moby/buildkit/worker/base"
	digest "github.com/opencontainers/go-digest"
)

// addSources gives a job's worker what its builds read.
func (s *Service) addSources(w *base.Worker, own *imageStore, t *transport, regs *registries, namespace string) (err error) {
	if w.SourceManager, err = source.NewManager(); err != nil {
		return fmt.Errorf("make source manager: %w", err)
	}
	cm := scope{w.CacheMgr, namespace}
	seen := own.known
	// The layers of images are the node's, by their digests.
	opt := containerimage.SourceOpt{
		Snapshotter: w.Snapshotter, ContentStore: seen, Applier: w.Applier, ImageStore: own,
		CacheAccessor: w.CacheMgr, RegistryHosts: s.hosts, LeaseManager: w.LeaseManager(),
	}
	if w.ImageSource, err = containerimage.NewSource(opt); err != nil {
		return fmt.Errorf("make image source: %w", err)
	}
	opt.ResolverType, opt.RegistryHosts = containerimage.ResolverTypeOCILayout, nil
	if w.OCILayoutSource, err = containerimage.NewSource(opt); err != nil {
		return fmt.Errorf("make OCI layout source: %w", err)
	}
	blobs, err := containerblob.NewSource(containerblob.SourceOpt{
		ContentStore: seen, CacheAccessor: cm, RegistryHosts: s.hosts,
	})
	if err != nil {
		return fmt.Errorf("make blob source: %w", err)
	}
	if w.HTTPSource, err = httpsource.NewSource(httpsource.Opt{CacheAccessor: cm, Transport: t}); err != nil {
		return fmt.Errorf("make HTTP source: %w", err)
	}
	dirs, err := local.NewSource(local.Opt{CacheAccessor: cm})
	if err != nil {
		return fmt.Errorf("make local source: %w", err)
	}
	for _, src := range []source.Source{registrySource{w.ImageSource, regs}, w.OCILayoutSource, registrySource{blobs, regs}, w.HTTPSource, dirs, noGit{}} {
		w.SourceManager.Register(src)
	}
	return nil
}

// registrySource is one that asks registries, as the job.
type registrySource struct {
	source.Source
	registries *registries
}

func (s registrySource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	inst, err := s.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	return &registryInstance{SourceInstance: inst, registries: s.registries}, nil
}

type registryInstance struct {
	source.SourceInstance
	registries *registries
	lazy       sync.Once
}

func (i *registryInstance) CacheKey(ctx context.Context, j solver.JobContext, index int) (key, pin string, opts solver.CacheOpts, done bool, err error) {
	key, pin, opts, done, err = i.SourceInstance.CacheKey(i.registries.with(ctx, sessionsOf(j)), j, index)
	if err != nil {
		return "", "", nil, false, err
	}
	i.lazy.Do(func() { // they are the same every time
		for k, o := range opts {
			d, ok := k.(cache.DescHandlerKey)
			if h, is := o.(*cache.DescHandler); ok && is {
				i.registries.lazily(digest.Digest(d), h, sessionsOf(j))
			}
		}
	})
	return key, pin, opts, done, nil
}

func (i *registryInstance) Snapshot(ctx context.Context, j solver.JobContext) (cache.ImmutableRef, error) {
	return i.SourceInstance.Snapshot(i.registries.with(ctx, sessionsOf(j)), j)
}

// sessionsOf are those that take part in what is built.
func sessionsOf(j solver.JobContext) session.Group {
	if j == nil {
		return nil
	}
	return j.Session()
}

// noGit refuses git: BuildKit runs it in berthd, on the node's network and with one clone for all who name a URL.
type noGit struct{}

func (noGit) Schemes() []string { return []string{srctypes.GitScheme} }

func (noGit) Identifier(string, string, map[string]string, *pb.Platform) (source.Identifier, error) {
	return nil, fmt.Errorf("builds do not fetch from git: clone in the job, and build from that directory: %w", errdefs.ErrPermissionDenied)
}

func (noGit) Resolve(context.Context, source.Identifier, *session.Manager, solver.Vertex) (source.SourceInstance, error) {
	return nil, errdefs.ErrPermissionDenied
}

// transport fetches what a build ADDs from the web, and the contexts that came with requests.
type transport struct {
	http.Transport
	mu       sync.Mutex
	contexts map[string]io.ReadCloser
}

func newTransport(w *web) *transport {
	return &transport{
		Transport: http.Transport{
			DialContext: w.dial, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute, MaxIdleConns: 10,
			ForceAttemptHTTP2: true,
		},
		contexts: map[string]io.ReadCloser{},
	}
}

// contextHost is of no host that there can be.
const contextHost = ".context.invalid"

// put keeps a context until it is read, or dropped.
func (t *transport) put(body io.ReadCloser) (url string, drop func()) {
	host := strings.ToLower(rand.Text()) + contextHost
	t.mu.Lock()
	defer t.mu.Unlock()
	t.contexts[host] = body
	return "http://" + host + "/context", func() { t.take(host) }
}

func (t *transport) take(host string) io.ReadCloser {
	t.mu.Lock()
	defer t.mu.Unlock()
	body := t.contexts[host]
	delete(t.contexts, host)
	return body
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Host, contextHost) {
		return t.Transport.RoundTrip(r)
	}
	body := t.take(r.URL.Host)
	if body == nil {
		return nil, fmt.Errorf("the build's context is read already: %w", errdefs.ErrNotFound)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: body, ContentLength: -1, Request: r,
	}, nil
}
