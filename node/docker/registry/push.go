package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push sends what an image stands for to a registry.
type Push struct {
	// Tag of the repository that it gets.
	Tag    string
	Target ocispec.Descriptor
	// Platform alone is sent, if given.
	Platform *ocispec.Platform
}

// pushed ends the stream of a push.
type pushed struct {
	Tag    string
	Digest string
	Size   int64
}

// Push sends an image and tells of it.
func (r *Repository) Push(ctx context.Context, p Push, say func(Message)) error {
	named, err := reference.WithTag(reference.TrimNamed(r.named), p.Tag)
	if err != nil {
		return fmt.Errorf("push to %s: %w: %w", r.named, err, errdefs.ErrInvalidArgument)
	}
	target, err := r.complete(ctx, p)
	if err != nil {
		return err
	}
	tracker := docker.NewInMemoryTracker()
	pusher, err := r.resolver(tracker).Pusher(ctx, named.String())
	if err != nil {
		return err
	}
	uploads := &uploads{say: say, tracker: tracker, seen: map[digest.Digest]ocispec.Descriptor{}}
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { uploads.watch(watching) })
	err = remotes.PushContent(ctx, uploads.note(pusher), target, r.Client.ContentStore(), nil, platforms.All, nil)
	stop()
	watch.Wait()
	if err != nil {
		if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
			return fmt.Errorf("push access denied, repository does not exist or may require authorization: %w", err)
		}
		return answered(err)
	}
	say(Message{Status: fmt.Sprintf("%s: digest: %s size: %d", p.Tag, target.Digest, target.Size)})
	say(Message{Progress: &Detail{}, Aux: pushed{Tag: p.Tag, Digest: target.Digest.String(), Size: target.Size}})
	return nil
}

// complete finds what can be sent: the whole image if all of it is on the
// node, else the manifest of one platform.
func (r *Repository) complete(ctx context.Context, p Push) (ocispec.Descriptor, error) {
	store := r.Client.ContentStore()
	if !images.IsIndexType(p.Target.MediaType) {
		return p.Target, nil
	}
	matcher := platforms.Default()
	if p.Platform != nil {
		matcher = platforms.OnlyStrict(*p.Platform)
	} else {
		whole := true
		err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if _, err := store.Info(ctx, desc.Digest); errdefs.IsNotFound(err) {
				whole = false
				return nil, images.ErrStopHandler
			} else if err != nil {
				return nil, err
			}
			return images.Children(ctx, store, desc)
		}), p.Target)
		if err != nil && !errors.Is(err, images.ErrStopHandler) {
			return ocispec.Descriptor{}, fmt.Errorf("look through image %s: %w", r.named, err)
		}
		if whole {
			return p.Target, nil
		}
	}
	var best *ocispec.Descriptor
	children, err := images.Children(ctx, store, p.Target)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look through image %s: %w", r.named, err)
	}
	for _, child := range children {
		if child.Platform == nil || !matcher.Match(*child.Platform) {
			continue
		}
		if complete, _, _, _, err := images.Check(ctx, store, child, platforms.All); err != nil || !complete {
			continue
		}
		if best == nil || matcher.Less(*child.Platform, *best.Platform) {
			best = &child
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("image %s is on the node for no platform in whole: pull it first: %w", r.named, errdefs.ErrNotFound)
	}
	return *best, nil
}

// uploads are the layers that go to the registry.
type uploads struct {
	say     func(Message)
	tracker docker.StatusTracker

	mu   sync.Mutex
	seen map[digest.Digest]ocispec.Descriptor // under way
}

// note reports how each layer fares.
func (u *uploads) note(p remotes.Pusher) remotes.Pusher {
	return remotes.PusherFunc(func(ctx context.Context, desc ocispec.Descriptor) (w content.Writer, err error) {
		w, err = p.Push(ctx, desc)
		if !images.IsLayerType(desc.MediaType) {
			return w, err
		}
		switch {
		case err == nil:
			u.mu.Lock()
			u.seen[desc.Digest] = desc
			u.mu.Unlock()
			u.say(Message{ID: short(desc.Digest), Status: "Pushing", Progress: &Detail{Total: desc.Size}})
			return &committing{Writer: w, done: func() { u.done(desc) }}, nil
		case errdefs.IsAlreadyExists(err):
			u.say(Message{ID: short(desc.Digest), Status: "Layer already exists", Progress: &Detail{}})
		}
		return w, err
	})
}

func (u *uploads) done(desc ocispec.Descriptor) {
	u.mu.Lock()
	delete(u.seen, desc.Digest)
	u.mu.Unlock()
	u.say(Message{ID: short(desc.Digest), Status: "Pushed", Progress: &Detail{}})
}

func (u *uploads) watch(ctx context.Context) {
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		u.mu.Lock()
		for d, desc := range u.seen {
			if status, err := u.tracker.GetStatus(remotes.MakeRefKey(ctx, desc)); err == nil {
				u.say(Message{ID: short(d), Status: "Pushing", Progress: &Detail{Current: status.Offset, Total: desc.Size}})
			}
		}
		u.mu.Unlock()
	}
}
