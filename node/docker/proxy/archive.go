package proxy

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// held is the content store as an archive is read into it. It notes what was
// in the archive: an index that only names what others have on the node gives
// it to nobody. Writes under way are the call's own, since they are continued
// by their names.
type held struct {
	content.Store
	prefix string

	mu  sync.Mutex
	all map[digest.Digest]bool
}

func holding(store content.Store, prefix string) *held {
	return &held{Store: store, prefix: prefix, all: map[digest.Digest]bool{}}
}

func (h *held) add(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[d] = true
}

func (h *held) has(d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[d]
}

// Writer implements content.Ingester. A digest is known beforehand of nothing
// but what is made of the archive's parts.
func (h *held) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if o.Ref != "" {
		opts = append(opts, content.WithRef(h.prefix+o.Ref))
	}
	w, err := h.Store.Writer(ctx, opts...)
	if err != nil {
		if errdefs.IsAlreadyExists(err) {
			h.add(o.Desc.Digest)
		}
		return nil, err
	}
	return &heldWriter{Writer: w, of: h}, nil
}

type heldWriter struct {
	content.Writer
	of *held
}

func (w *heldWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	d := w.Digest()
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.of.add(d)
	}
	return err
}

// Walk implements content.Manager. A layer that is there compressed is what
// the archive has of it.
func (h *held) Walk(ctx context.Context, f content.WalkFunc, filters ...string) error {
	return h.Store.Walk(ctx, func(info content.Info) error {
		if h.has(digest.Digest(info.Labels[labels.LabelUncompressed])) {
			h.add(info.Digest)
		}
		return f(info)
	}, filters...)
}

// sees tells whether content is of an image that the job sees.
func (c *call) sees(ctx context.Context, d digest.Digest) (bool, error) {
	view, err := c.view(ctx)
	if err != nil {
		return false, err
	}
	store, walked, found := c.Client.ContentStore(), map[digest.Digest]bool{}, false
	for _, image := range view {
		if err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			found = found || desc.Digest == d
			if found || walked[desc.Digest] {
				return nil, images.ErrSkipDesc
			}
			walked[desc.Digest] = true
			below, err := images.Children(ctx, store, desc)
			if errdefs.IsNotFound(err) {
				return nil, nil // of a platform that is not here
			}
			return below, err
		}), image.Target); err != nil {
			return false, err
		}
	}
	return found, nil
}
