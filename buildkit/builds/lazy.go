package builds

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/contentutil"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layers are fetched when they are first read, by whatever does: a step, an export, a frontend. What is read then tells no
// job, so it is the way to fetch a layer that does, which each job's build has of its own.
//
// But while one job fetches a layer others wait for it, and should it end, the next of them goes on: in its own network.

// layers are the ways to fetch them.
type layers struct {
	mu sync.Mutex
	m  map[digest.Digest]map[*registries]func() content.Provider
}

func (l *layers) add(d digest.Digest, r *registries, provide func() content.Provider) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.ctx.Err() != nil {
		return // it is forgotten already
	}
	if l.m == nil {
		l.m = map[digest.Digest]map[*registries]func() content.Provider{}
	}
	if l.m[d] == nil {
		l.m[d] = map[*registries]func() content.Provider{}
	}
	l.m[d][r] = provide
}

// other is a way of a job that is there, nil if there is none.
func (l *layers) other(d digest.Digest) content.Provider {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r, provide := range l.m[d] {
		if r.ctx.Err() == nil {
			return provide()
		}
	}
	return nil
}

// forget removes those of a job.
func (l *layers) forget(r *registries) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d, of := range l.m {
		if delete(of, r); len(of) == 0 {
			delete(l.m, d)
		}
	}
}

// lazily has a layer be fetched by the job.
func (r *registries) lazily(d digest.Digest, h *cache.DescHandler, sessions session.Group) {
	provide := h.Provider
	h.Provider = func(g session.Group) content.Provider { return lazy{provide(g), r, g} }
	r.layers.add(d, r, func() content.Provider { return lazy{provide(sessions), r, sessions} })
}

type lazy struct {
	content.Provider
	registries *registries
	group      session.Group
}

func (l lazy) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if l.registries.ctx.Err() != nil {
		if other := l.registries.layers.other(desc.Digest); other != nil {
			return other.ReaderAt(ctx, desc)
		}
	}
	return l.Provider.ReaderAt(l.registries.with(ctx, l.group), desc)
}

// FromRemote makes a result of what a cache elsewhere has.
func (w *jobWorker) FromRemote(ctx context.Context, remote *solver.Remote) (cache.ImmutableRef, error) {
	own := *remote
	own.Provider = lazyRemote{remote.Provider, w.registries, nil}
	return w.Worker.FromRemote(w.registries.with(ctx, nil), &own)
}

// lazyRemote is lazy for layers of such a cache; what else BuildKit asks it for is passed on.
type lazyRemote struct {
	content.InfoReaderProvider
	registries *registries
	group      session.Group
}

func (l lazyRemote) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	return l.InfoReaderProvider.ReaderAt(l.registries.with(ctx, l.group), desc)
}

// ProviderForSession is by the logins of a session.
func (l lazyRemote) ProviderForSession(g session.Group) content.Provider {
	return lazy{contentutil.ProviderForSession(l.InfoReaderProvider, g), l.registries, g}
}

// SnapshotLabels are for a snapshotter.
func (l lazyRemote) SnapshotLabels(descs []ocispecs.Descriptor, i int) map[string]string {
	if p, ok := l.InfoReaderProvider.(interface {
		SnapshotLabels(descs []ocispecs.Descriptor, i int) map[string]string
	}); ok {
		return p.SnapshotLabels(descs, i)
	}
	return nil
}

// UnlazySession is of a layer that is to be fetched at once, nil for others.
func (l lazyRemote) UnlazySession(desc ocispecs.Descriptor) session.Group {
	if p, ok := l.InfoReaderProvider.(interface {
		UnlazySession(desc ocispecs.Descriptor) session.Group
	}); ok {
		return p.UnlazySession(desc)
	}
	return nil
}
