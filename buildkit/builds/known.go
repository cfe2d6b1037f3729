package builds

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// known is the node's content as far as a namespace has had it: the manifests and configurations of its images. BuildKit
// takes what is there for pulled already, by whomever: a private image for one who names its digest, or has a registry of
// his own name it. Here it is there for those alone that fetched all of it.
type known struct {
	content.Store
	label string
}

func newKnown(s content.Store, namespace string) known {
	return known{s, "berth.known/" + namespace}
}

func (k known) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	info, err := k.Store.Info(ctx, d)
	if err != nil {
		return content.Info{}, err
	}
	if info.Labels[k.label] == "" {
		return content.Info{}, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return info, nil
}

func (k known) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if _, err := k.Info(ctx, desc.Digest); err != nil {
		return nil, err
	}
	return k.Store.ReaderAt(ctx, desc)
}

func (k known) mark(ctx context.Context, d digest.Digest) error {
	_, err := k.Update(ctx, content.Info{Digest: d, Labels: map[string]string{k.label: "true"}}, "labels."+k.label)
	if err != nil {
		return fmt.Errorf("mark content %s: %w", d, err)
	}
	return nil
}

// markImage makes an image known that the namespace may have without asking: it has made it.
func (k known) markImage(ctx context.Context, img images.Image) error {
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispecs.Descriptor) ([]ocispecs.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			return nil, nil
		}
		if _, err := k.Store.Info(ctx, desc.Digest); errdefs.IsNotFound(err) {
			return nil, nil // of another platform
		}
		if err := k.mark(ctx, desc.Digest); err != nil {
			return nil, err
		}
		return images.Children(ctx, k.Store, desc)
	}), img.Target)
}

// Writer is where what is fetched goes. What is there already is fetched all the same, by those that it is not known to.
func (k known) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var wanted content.WriterOpts
	for _, o := range opts {
		if err := o(&wanted); err != nil {
			return nil, err
		}
	}
	w, err := k.Store.Writer(ctx, opts...)
	switch {
	case err == nil:
		return proof{w, k}, nil
	case !errdefs.IsAlreadyExists(err) || wanted.Desc.Digest == "":
		return nil, err
	}
	if _, known := k.Info(ctx, wanted.Desc.Digest); known == nil {
		return nil, err
	}
	return proof{&compare{ref: wanted.Ref, want: wanted.Desc, sum: wanted.Desc.Digest.Algorithm().Digester(), began: time.Now()}, k}, nil
}

// proof makes known what was written whole.
type proof struct {
	content.Writer
	known known
}

func (p proof) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := p.Writer.Commit(ctx, size, expected, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if marked := p.known.mark(ctx, p.Digest()); marked != nil {
		return marked
	}
	return err
}

// compare takes what is there already, and keeps its sum alone.
type compare struct {
	ref   string
	want  ocispecs.Descriptor
	sum   digest.Digester
	n     int64
	began time.Time
}

func (c *compare) Write(p []byte) (int, error) {
	if c.want.Size > 0 && c.n+int64(len(p)) > c.want.Size {
		return 0, fmt.Errorf("content %s is longer than %d bytes: %w", c.want.Digest, c.want.Size, errdefs.ErrFailedPrecondition)
	}
	c.n += int64(len(p))
	return c.sum.Hash().Write(p)
}

func (c *compare) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	if expected == "" {
		expected = c.want.Digest
	}
	if got := c.sum.Digest(); got != expected || got != c.want.Digest || size > 0 && size != c.n {
		return fmt.Errorf("content is %s of %d bytes, not %s: %w", got, c.n, c.want.Digest, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (c *compare) Digest() digest.Digest { return c.sum.Digest() }
func (c *compare) Close() error          { return nil }

func (c *compare) Truncate(size int64) error {
	if size != 0 {
		return errdefs.ErrNotImplemented
	}
	c.sum, c.n = c.want.Digest.Algorithm().Digester(), 0
	return nil
}

func (c *compare) Status() (content.Status, error) {
	return content.Status{Ref: c.ref, Offset: c.n, Total: c.want.Size, Expected: c.want.Digest, StartedAt: c.began, UpdatedAt: time.Now()}, nil
}
