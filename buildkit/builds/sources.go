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

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
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
func (s *Service) addSources(w *base.Worker, own *imageStore, t *transport, namespace string) (err error) {
	if w.SourceManager, err = source.NewManager(); err != nil {
		return fmt.Errorf("make source manager: %w", err)
	}
	cm := scope{w.CacheMgr, namespace}
	// The layers of images are the node's, by their digests.
	opt := containerimage.SourceOpt{
		Snapshotter: w.Snapshotter, ContentStore: asked{w.ContentStore()}, Applier: w.Applier, ImageStore: own,
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
		ContentStore: asked{w.ContentStore()}, CacheAccessor: cm, RegistryHosts: s.hosts,
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
	for _, src := range []source.Source{w.ImageSource, w.OCILayoutSource, blobs, w.HTTPSource, dirs, noGit{}} {
		w.SourceManager.Register(src)
	}
	return nil
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

// asked is the node's content without where it came from. BuildKit takes a manifest that it has for pulled already, by
// whomever, if it came from where the build names it; like this the registry is asked whether this one may.
type asked struct{ content.Store }

func (a asked) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	info, err := a.Store.Info(ctx, d)
	for k := range info.Labels {
		if strings.HasPrefix(k, "containerd.io/distribution.source.") {
			delete(info.Labels, k)
		}
	}
	return info, err
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
