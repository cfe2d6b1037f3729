package network

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// retryDelay is how long the pool waits after it could not make a network.
const retryDelay = 5 * time.Second

// refill keeps the pool full.
func (p *Pool) refill(ctx context.Context) {
	for {
		var retry <-chan time.Time
		for ctx.Err() == nil && p.short() {
			err := p.prepareOne(ctx)
			if errdefs.IsResourceExhausted(err) {
				break // until a Release
			}
			if err != nil {
				if ctx.Err() == nil {
					p.log.WithError(err).Warn("cannot prepare a network")
				}
				retry = time.After(retryDelay)
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-retry:
		}
	}
}

func (p *Pool) prepareOne(ctx context.Context) error {
	p.filling.Lock()
	defer p.filling.Unlock()
	n, err := p.create(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = append(p.ready, n)
	return nil
}

func (p *Pool) short() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready) < p.config.Pool
}

// nudge makes the refill look again.
func (p *Pool) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// create makes a network in a free slot.
func (p *Pool) create(ctx context.Context) (Network, error) {
	slot, err := p.reserve()
	if err != nil {
		return Network{}, err
	}
	n := p.config.network(slot)
	if err := p.build(ctx, n); err != nil {
		p.free(slot)
		return Network{}, err
	}
	return n, nil
}

// reserve finds the free slot that has been unused the longest, so that names
// and addresses of a job are not soon another's.
func (p *Pool) reserve() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, errClosed
	}
	if p.stop == nil {
		return 0, fmt.Errorf("networks left by an earlier life are not adopted yet: %w", errdefs.ErrFailedPrecondition)
	}
	total := p.config.slots()
	for i := range total {
		slot := (p.last+i)%total + 1
		if p.slots[slot] == nil {
			p.slots[slot] = &lease{}
			p.last = slot
			return slot, nil
		}
	}
	return 0, fmt.Errorf("all %d networks of %s are in use: %w", total, p.config.Subnet, errdefs.ErrResourceExhausted)
}

func (p *Pool) free(slot int) {
	p.mu.Lock()
	delete(p.slots, slot)
	p.mu.Unlock()
	p.nudge()
}

// discard destroys a network that no job has.
func (p *Pool) discard(n Network) error {
	if err := p.destroy(n); err != nil {
		return err // the slot stays taken, the next Adopt tries again
	}
	p.free(n.Slot)
	return nil
}
