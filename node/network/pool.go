package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Pool holds the networks of an instance: those of jobs and those prepared
// for jobs to come.
type Pool struct {
	config Config
	log    *logrus.Entry
	lock   net.Listener // keeps the instance from being opened twice
	wake   chan struct{}
	stop   context.CancelFunc // of the refill, nil before Adopt
	done   sync.WaitGroup

	filling sync.Mutex // held while a network is made for the pool

	mu     sync.Mutex
	last   int // slot given last: the one longest unused comes next
	slots  map[int]*lease
	ready  []Network
	closed bool
}

var errClosed = fmt.Errorf("pool is closed: %w", errdefs.ErrUnavailable)

// lease is a slot that is not free. Its lock orders Join and Release.
type lease struct {
	job      string // empty while no job has it
	mu       sync.Mutex
	released bool
}

// Open prepares the host. Networks are given out once Adopt has been called.
func Open(ctx context.Context, config Config, log *logrus.Entry) (_ *Pool, err error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	for name, e := range config.Egress {
		if _, err := e.verdicts(name); err != nil {
			return nil, err
		}
	}
	lock, err := lockInstance(ctx, config.Instance)
	if err != nil {
		return nil, err
	}
	p := &Pool{config: config, log: log, lock: lock, wake: make(chan struct{}, 1), slots: map[int]*lease{}}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := checkOverlap(config); err != nil {
		return nil, err
	}
	if config.MTU == 0 {
		if p.config.MTU, err = defaultMTU(); err != nil {
			return nil, err
		}
	}
	if err := sysctl("ipv4/ip_forward", "1"); err != nil {
		return nil, err
	}
	if err := p.AllowForwarding(); err != nil {
		return nil, err
	}
	return p, nil
}

// lockInstance listens on an abstract address: it is scoped to the host's
// network namespace, as names of links are, and free once the process is gone.
func lockInstance(ctx context.Context, instance string) (net.Listener, error) {
	var lc net.ListenConfig
	for wait := time.Millisecond; ; wait *= 2 {
		l, err := lc.Listen(ctx, "unix", "@berth-network-"+instance)
		if err == nil {
			return l, nil
		}
		// A child that an earlier life was just starting when it was killed
		// holds the socket until its exec.
		if errors.Is(err, unix.EADDRINUSE) && wait < 500*time.Millisecond {
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
			}
		}
		return nil, fmt.Errorf("network instance %q is in use on this host: %w: %w", instance, err, errdefs.ErrUnavailable)
	}
}

// Close destroys the prepared networks and, when no job has one, everything
// else that the pool made. Networks of jobs go on and can be adopted.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	stop := p.stop
	p.mu.Unlock()
	if stop != nil {
		stop()
		p.done.Wait()
	}

	p.mu.Lock()
	ready := p.ready
	p.ready = nil
	p.mu.Unlock()
	var errs []error
	for _, n := range ready {
		errs = append(errs, p.discard(n))
	}
	p.mu.Lock()
	inUse := len(p.slots)
	p.mu.Unlock()
	if inUse == 0 && ctx.Err() == nil {
		errs = append(errs, p.removeTable(), p.revokeForwarding())
		// Left where it is not empty: another instance may use it.
		_ = os.Remove(p.config.Dir)
	}
	errs = append(errs, p.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close networks: %w", err)
	}
	return nil
}
