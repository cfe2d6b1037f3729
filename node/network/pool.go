package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
)

// retryDelay is how long the pool waits after it could not make a network.
const retryDelay = 5 * time.Second

// Pool holds the networks of an instance: those of jobs and those prepared
// for jobs to come.
type Pool struct {
	config Config
	log    *logrus.Entry
	lock   net.Listener // keeps the instance from being opened twice
	wake   chan struct{}
	stop   context.CancelFunc // of the refill, nil before Adopt
	done   sync.WaitGroup

	mu     sync.Mutex
	last   int // slot given last: the one longest unused comes next
	slots  map[int]*lease
	ready  []Network
	closed bool
}

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
	// An abstract address is scoped to the host's network namespace, as the
	// names of links are, and free once the process is gone.
	var lc net.ListenConfig
	lock, err := lc.Listen(ctx, "unix", "@berth-network-"+config.Instance)
	if err != nil {
		return nil, fmt.Errorf("network instance %q is in use on this host: %w: %w", config.Instance, err, errdefs.ErrUnavailable)
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

// Adopt keeps the given networks, which an earlier life of this instance made,
// destroys everything else that it left, and starts to fill the pool. Of a
// network that no longer exists (the host was restarted) only the slot is
// kept, until its Release.
func (p *Pool) Adopt(ctx context.Context, inUse []Network) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.stop != nil {
		return fmt.Errorf("adopt networks: pool is closed or has adopted: %w", errdefs.ErrFailedPrecondition)
	}
	slots := map[int]*lease{}
	for _, n := range inUse {
		if n.Slot < 1 || n.Job == "" || n.Bridge != p.config.link(bridgeLink, n.Slot) || n.Netns != p.config.netns(n.Slot) {
			return fmt.Errorf("adopt network %d of job %q: it is not of instance %q below %s: %w", n.Slot, n.Job, p.config.Instance, p.config.Dir, errdefs.ErrInvalidArgument)
		}
		if slots[n.Slot] != nil {
			return fmt.Errorf("adopt network %d of job %q: job %q has it too: %w", n.Slot, n.Job, slots[n.Slot].job, errdefs.ErrInvalidArgument)
		}
		slots[n.Slot] = &lease{job: n.Job}
	}
	if err := p.installTable(ctx, inUse); err != nil {
		return err
	}
	left, err := p.leftovers()
	if err != nil {
		return err
	}
	for slot := range left {
		if slots[slot] != nil {
			continue
		}
		p.log.WithField("slot", slot).Info("removing a network that no job has")
		if err := p.destroy(p.config.network(slot)); err != nil {
			return fmt.Errorf("remove network %d: %w", slot, err)
		}
	}
	p.slots = slots
	refill, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	p.done.Go(func() { p.refill(refill) })
	return nil
}

// leftovers finds the slots that anything on the host is named after.
func (p *Pool) leftovers() (map[int]bool, error) {
	found := map[int]bool{}
	note := func(name, prefix string) {
		rest, ok := strings.CutPrefix(name, prefix+p.config.Instance+"-")
		if !ok {
			return
		}
		digits, _, _ := strings.Cut(rest, "-")
		if slot, err := strconv.Atoi(digits); err == nil {
			found[slot] = true
		}
	}
	files, err := os.ReadDir(p.config.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for _, f := range files {
		note(f.Name(), "")
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		for _, kind := range []string{bridgeLink, routerLink, endpointLink, uplinkLink} {
			note(l.Attrs().Name, kind)
		}
	}
	return found, nil
}

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

var errClosed = fmt.Errorf("pool is closed: %w", errdefs.ErrUnavailable)

// next pops a prepared network, or makes one.
func (p *Pool) next(ctx context.Context) (Network, error) {
	p.mu.Lock()
	if len(p.ready) > 0 && !p.closed {
		n := p.ready[0]
		p.ready = p.ready[1:]
		p.mu.Unlock()
		p.nudge()
		return n, nil
	}
	p.mu.Unlock()
	return p.create(ctx)
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
		_ = os.Remove(filepath.Clean(p.config.Dir))
	}
	errs = append(errs, p.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close networks: %w", err)
	}
	return nil
}

// refill keeps the pool full.
func (p *Pool) refill(ctx context.Context) {
	for {
		var retry <-chan time.Time
		for ctx.Err() == nil && p.short() {
			n, err := p.create(ctx)
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
			p.mu.Lock()
			p.ready = append(p.ready, n)
			p.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-retry:
		}
	}
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
