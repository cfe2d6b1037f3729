package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Take gives a network to a job, from the pool if one is there.
func (p *Pool) Take(ctx context.Context, job, profile string) (_ Network, err error) {
	if job == "" {
		return Network{}, fmt.Errorf("take network: no job: %w", errdefs.ErrInvalidArgument)
	}
	if _, ok := p.config.Egress[profile]; !ok {
		return Network{}, fmt.Errorf("take network: profile %q has no egress rules: %w", profile, errdefs.ErrNotFound)
	}
	n, err := p.next(ctx)
	if err != nil {
		return Network{}, fmt.Errorf("take network: %w", err)
	}
	n.Job, n.Profile = job, profile
	defer func() {
		if err != nil {
			err = fmt.Errorf("take network: %w", errors.Join(err, p.discard(n)))
		}
	}()
	if err := setAlias(n.Bridge, job); err != nil {
		return Network{}, err
	}
	if err := p.admit(n); err != nil {
		return Network{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return Network{}, errClosed
	}
	p.slots[n.Slot].job = job
	return n, nil
}

// next pops a prepared network, or makes one.
func (p *Pool) next(ctx context.Context) (Network, error) {
	if n, ok := p.pop(); ok {
		return n, nil
	}
	n, err := p.create(ctx)
	if errdefs.IsResourceExhausted(err) {
		// The refill may be preparing the last free slot at this moment.
		p.filling.Lock()
		defer p.filling.Unlock()
		if n, ok := p.pop(); ok {
			return n, nil
		}
	}
	return n, err
}

func (p *Pool) pop() (Network, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 || p.closed {
		return Network{}, false
	}
	n := p.ready[0]
	p.ready = p.ready[1:]
	p.nudge()
	return n, true
}

// lease finds the lease of a job's network.
func (p *Pool) lease(n Network) (*lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.slots[n.Slot]
	if l == nil || n.Job == "" || l.job != n.Job {
		return nil, fmt.Errorf("network of job %q: %w", n.Job, errdefs.ErrNotFound)
	}
	return l, nil
}

// Release removes a job's network with all its endpoints. A network that the
// job no longer has is no error; after an error Release can be called again.
func (p *Pool) Release(ctx context.Context, n Network) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l, err := p.lease(n)
	if errdefs.IsNotFound(err) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	if err := p.destroy(n); err != nil {
		return fmt.Errorf("release network %d of job %q: %w", n.Slot, n.Job, err)
	}
	l.released = true
	p.free(n.Slot)
	return nil
}
