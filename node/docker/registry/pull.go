package registry

import (
	"context"
	"fmt"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// progressInterval is how often a download under way is reported.
const progressInterval = 100 * time.Millisecond

// Pull asks for an image.
type Pull struct {
	// Stored is the name that the image gets, with labels.
	Stored string
	Labels map[string]string
	// Platform is the node's where empty.
	Platform string
}

// Pull gets an image from its registry, unpacked, and tells of it.
func (r *Repository) Pull(ctx context.Context, p Pull, say func(Message)) error {
	matcher := platforms.Default()
	if p.Platform != "" {
		platform, err := platforms.Parse(p.Platform)
		if err != nil {
			return fmt.Errorf("platform %q: %w", p.Platform, err)
		}
		matcher = platforms.Only(platform)
	}
	resolver := r.resolver(docker.NewInMemoryTracker())
	name, desc, err := resolver.Resolve(ctx, r.named.String())
	if err != nil {
		return refused(r.named, fmt.Errorf("failed to resolve reference %q: %w", r.named, err))
	}
	id := "latest"
	if tagged, ok := r.named.(reference.Tagged); ok {
		id = tagged.Tag()
	} else if digested, ok := r.named.(reference.Digested); ok {
		id = digested.Digest().String()
	}
	say(Message{ID: id, Status: "Pulling from " + reference.Path(r.named)})

	before, err := r.Client.ImageService().Get(ctx, p.Stored)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("look up image %s: %w", r.named, err)
	}
	fresh := err != nil || before.Target.Digest != desc.Digest
	tell := say
	if !fresh {
		tell = func(Message) {} // there is nothing to fetch
	}
	layers := &layers{store: r.Client.ContentStore(), say: tell, seen: map[digest.Digest]*layer{}}
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { layers.watch(watching, r.Client) })
	_, err = r.Client.Pull(ctx, p.Stored,
		containerd.WithResolver(renamed{Resolver: resolver, registry: name, stored: p.Stored, desc: desc}),
		containerd.WithPlatformMatcher(matcher),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(r.Snapshotter),
		containerd.WithPullLabels(p.Labels),
		containerd.WithImageHandlerWrapper(layers.wrap),
	)
	stop()
	watch.Wait()
	if err != nil {
		return refused(r.named, err)
	}
	layers.done()
	say(Message{Status: "Digest: " + desc.Digest.String()})
	if fresh {
		say(Message{Status: "Status: Downloaded newer image for " + reference.FamiliarString(r.named)})
	} else {
		say(Message{Status: "Status: Image is up to date for " + reference.FamiliarString(r.named)})
	}
	return nil
}

// layer is one of an image that is being pulled.
type layer struct {
	desc     ocispec.Descriptor
	complete bool
}

// layers are those that the registry is asked for.
type layers struct {
	store content.InfoProvider
	say   func(Message)

	mu    sync.Mutex
	seen  map[digest.Digest]*layer
	order []digest.Digest
}

func short(d digest.Digest) string { return d.Encoded()[:12] }

// wrap notes each layer on its way.
func (l *layers) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h.Handle(ctx, desc)
		if err != nil {
			return children, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, child := range children {
			if images.IsLayerType(child.MediaType) && l.seen[child.Digest] == nil {
				if _, err := l.store.Info(ctx, child.Digest); err == nil {
					continue // it is on the node
				}
				l.seen[child.Digest] = &layer{desc: child}
				l.order = append(l.order, child.Digest)
				l.say(Message{ID: short(child.Digest), Status: "Pulling fs layer", Progress: &Detail{}})
			}
		}
		if one := l.seen[desc.Digest]; one != nil && !one.complete {
			one.complete = true
			l.say(Message{ID: short(desc.Digest), Status: "Download complete", Progress: &Detail{}})
		}
		return children, nil
	})
}

// watch reports downloads that take their time.
func (l *layers) watch(ctx context.Context, client *containerd.Client) {
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		active, err := client.ContentStore().ListStatuses(ctx, "")
		if err != nil {
			continue // it is no more than decoration
		}
		l.mu.Lock()
		for _, status := range active {
			for d, one := range l.seen {
				if !one.complete && status.Ref == "layer-"+d.String() {
					l.say(Message{ID: short(d), Status: "Downloading", Progress: &Detail{Current: status.Offset, Total: one.desc.Size}})
				}
			}
		}
		l.mu.Unlock()
	}
}

func (l *layers) done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.order {
		l.say(Message{ID: short(d), Status: "Pull complete", Progress: &Detail{}})
	}
}
