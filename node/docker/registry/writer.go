package registry

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// committing tells when what was written is complete.
type committing struct {
	content.Writer
	done func()
}

func (c *committing) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := c.Writer.Commit(ctx, size, expected, opts...)
	if err == nil {
		c.done()
	}
	return err
}
