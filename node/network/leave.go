package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Endpoints is how many endpoints a job may have at once.
const Endpoints = maxEndpoints

// Leave removes an endpoint before its network is released. One that is not
// there is no error.
func (p *Pool) Leave(ctx context.Context, n Network, nth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l, err := p.lease(n)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	// By the file it is found again, should it have to be done again.
	if err := errors.Join(removeLink(p.endpointLink(n, nth)), namespace.Remove(fmt.Sprintf("%s-%d", n.Netns, nth))); err != nil {
		return fmt.Errorf("remove endpoint %d of job %q: %w", nth, n.Job, err)
	}
	return nil
}
