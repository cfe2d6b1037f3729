package image

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// every is the time between two lines of progress: often enough to see that a job lives, rare enough for a log.
const every = 3 * time.Second

// progress tells the job log how far a pull is.
type progress struct {
	*job
	store content.Store
	began time.Time

	mu     sync.Mutex
	all    int // layers of the image
	layers map[digest.Digest]*layer
}

// layer is one that the node lacked.
type layer struct {
	ingest     string // what containerd calls the download
	size, done int64
}

func newProgress(j *job) *progress {
	return &progress{job: j, store: j.Client.ContentStore(), began: time.Now(), layers: map[digest.Digest]*layer{}}
}

// watch learns from the handler of a pull which layers there are and which of them are being fetched.
func (p *progress) watch(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		var fetching *layer
		if images.IsLayerType(desc.MediaType) {
			if _, err := p.store.Info(ctx, desc.Digest); err != nil {
				fetching = &layer{ingest: remotes.MakeRefKey(ctx, desc), size: desc.Size}
				p.mu.Lock()
				p.layers[desc.Digest] = fetching
				p.mu.Unlock()
			}
		}
		children, err := h.Handle(ctx, desc)
		p.mu.Lock()
		defer p.mu.Unlock()
		if fetching != nil && err == nil {
			fetching.done = fetching.size
		}
		if images.IsManifestType(desc.MediaType) {
			for _, child := range children {
				if images.IsLayerType(child.MediaType) {
					p.all++
				}
			}
		}
		return children, err
	})
}

// start writes a line now and then until stop is called.
func (p *progress) start(ctx context.Context) (stop func()) {
	interval := p.interval
	if interval == 0 {
		interval = every
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		var last int64
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				last = p.line(ctx, last, interval)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// line says how much is there, and the rate since the last line, when last bytes were.
func (p *progress) line(ctx context.Context, last int64, interval time.Duration) int64 {
	// Asking containerd rather than counting here covers layers that another process fetches, too.
	active, err := p.store.ListStatuses(ctx)
	if err != nil {
		return last
	}
	offset := make(map[string]int64, len(active))
	for _, status := range active {
		offset[status.Ref] = status.Offset
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.layers) == 0 {
		return last
	}
	var done, total int64
	complete := 0
	for _, l := range p.layers {
		l.done = max(l.done, offset[l.ingest])
		done, total = done+l.done, total+l.size
		if l.done == l.size {
			complete++
		}
	}
	if complete == len(p.layers) {
		p.log.Printf("  %s downloaded, unpacking", size(total))
		return done
	}
	p.log.Printf("  %s of %s, %d of %d layers, %s/s", size(done), size(total), complete, len(p.layers),
		size(int64(float64(done-last)/interval.Seconds())))
	return done
}

// summary is the last line.
func (p *progress) summary() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var total int64
	for _, l := range p.layers {
		total += l.size
	}
	p.log.Printf("Pulled %s in %.1f s (%d layers, %d of them already on the node)",
		size(total), time.Since(p.began).Seconds(), p.all, p.all-len(p.layers))
}

func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
