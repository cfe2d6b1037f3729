package gpu

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/executor"
)

// progressInterval is the least time between two lines about a waiting job's
// place.
const progressInterval = 3 * time.Second

// Lease says which devices a job has. Nobody else has them until it is
// released.
type Lease struct {
	Job     executor.Identity
	Profile string
	Devices []string // UUIDs
	Since   time.Time
}

// Pool leases the devices of an inventory, first come first served. It
// decides and remembers; it asks the driver nothing.
type Pool struct {
	mu        sync.Mutex
	inventory *Inventory
	topology  topology
	cpus      cpuSet
	leases    map[string]*Lease      // by job key
	holders   map[string]string      // job key by UUID
	shelf     map[string]*Quarantine // by UUID
	waiting   []*ticket
}

// ticket is a claim in the queue.
type ticket struct {
	claim   *Claim
	lease   *Lease        // valid once called
	called  chan struct{} // closed when the claim was met
	changed chan struct{} // filled when anything that matters to it changes
}

// NewPool makes a pool. cpus are those that jobs run on, as the kernel lists
// them; devices near them are preferred. Empty is all.
func NewPool(cpus string) *Pool {
	p := &Pool{leases: map[string]*Lease{}, holders: map[string]string{}, shelf: map[string]*Quarantine{}}
	if cpus != "" {
		p.cpus = parseCPUs(cpus)
	}
	return p
}

// Update makes an inventory the pool's. Leases of devices that are gone stay.
func (p *Pool) Update(i *Inventory) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inventory, p.topology = i, newTopology(i)
	p.serve()
}

// Inventory is what the pool leases from; nil before the first.
func (p *Pool) Inventory() *Inventory {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inventory
}

// Adopt takes over a lease from before berthd was started.
func (p *Pool) Adopt(l Lease) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := l.Job.Key()
	for _, uuid := range l.Devices {
		if other, taken := p.holders[uuid]; taken && other != key {
			return fmt.Errorf("device %s is leased to jobs %s and %s: %w", uuid, other, key, errdefs.ErrAlreadyExists)
		}
	}
	p.give(&l)
	return nil
}

func (p *Pool) give(l *Lease) {
	key := l.Job.Key()
	p.leases[key] = l
	for _, uuid := range l.Devices {
		p.holders[uuid] = key
	}
}

// Acquire waits until the claim is met, and says meanwhile where it stands. A
// claim that can never be met fails at once.
func (p *Pool) Acquire(ctx context.Context, c *Claim, progress func(string)) (*Lease, error) {
	t, err := p.join(c)
	if err != nil {
		return nil, err
	}
	var (
		timeout  = time.NewTimer(c.wait())
		since    = time.Now()
		lastLine time.Time
		nextLine <-chan time.Time
	)
	defer timeout.Stop()
	for {
		select {
		case <-t.called:
			return t.lease, nil
		case <-t.changed:
			if nextLine == nil {
				nextLine = time.After(time.Until(lastLine.Add(progressInterval)))
			}
		case <-nextLine:
			nextLine, lastLine = nil, time.Now()
			if place, err := p.describe(t); err != nil {
				p.leave(t)
				return nil, err
			} else if place != "" {
				progress("Waiting for GPUs: " + place)
			}
		case <-ctx.Done():
			p.leave(t)
			return nil, context.Cause(ctx)
		case <-timeout.C:
			place, err := p.describe(t)
			if err == nil && place == "" {
				return t.lease, nil // called just now
			}
			p.leave(t)
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("no GPUs became free in %v: %s: %w", time.Since(since).Round(time.Second), place, errdefs.ErrUnavailable)
		}
	}
}

// join puts a claim at the end of the queue.
func (p *Pool) join(c *Claim) (*ticket, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inventory == nil {
		return nil, fmt.Errorf("the node's GPUs are not known yet: %w", errdefs.ErrUnavailable)
	}
	if err := c.possible(p.inventory); err != nil {
		return nil, err
	}
	key := c.Job.Key()
	if p.leases[key] != nil {
		return nil, fmt.Errorf("job %s has GPUs already: %w", key, errdefs.ErrAlreadyExists)
	}
	t := &ticket{claim: c, called: make(chan struct{}), changed: make(chan struct{}, 1)}
	p.waiting = append(p.waiting, t)
	p.serve()
	return t, nil
}

// leave gives a claim up: its place in the queue, or what it just got.
func (p *Pool) leave(t *ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.DeleteFunc(p.waiting, func(w *ticket) bool { return w == t })
	if t.lease != nil {
		p.take(t.claim.Job.Key())
	}
	p.serve()
}

// Release ends a job's lease. It is true once for each lease.
func (p *Pool) Release(job string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leases[job] == nil {
		return false
	}
	p.take(job)
	p.serve()
	return true
}

func (p *Pool) take(job string) {
	for _, uuid := range p.leases[job].Devices {
		delete(p.holders, uuid)
	}
	delete(p.leases, job)
}

// Lease gives a job's lease.
func (p *Pool) Lease(job string) (Lease, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.leases[job]; l != nil {
		return *l, true
	}
	return Lease{}, false
}

// Leases gives all leases, oldest first.
func (p *Pool) Leases() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	leases := make([]Lease, 0, len(p.leases))
	for _, key := range slices.Sorted(maps.Keys(p.leases)) {
		leases = append(leases, *p.leases[key])
	}
	slices.SortStableFunc(leases, func(a, b Lease) int { return a.Since.Compare(b.Since) })
	return leases
}

// serve meets claims in the order in which they came. One that cannot be met
// yet keeps what is free of its kind for itself: those behind it get only
// what it has no use for, so that it need not wait for all of them to end at
// once. A profile that has all it may have, or will have once those before are
// met, keeps its later claims waiting, and nothing else.
func (p *Pool) serve() {
	if p.inventory == nil {
		return
	}
	full, promised, kept := map[string]bool{}, map[string]int{}, map[string]bool{}
	waiting := p.waiting[:0:0]
	for _, t := range p.waiting {
		profile, n := t.claim.Profile, t.claim.Request.Count
		if total := t.claim.Settings.Total; full[profile] || total > 0 && p.held(profile)+promised[profile]+n > total {
			full[profile] = true
			waiting = append(waiting, t)
			continue
		}
		var free []Device
		for _, d := range p.inventory.Devices {
			if p.holders[d.UUID] == "" && p.shelf[d.UUID] == nil && !kept[d.UUID] && t.claim.suits(d) {
				free = append(free, d)
			}
		}
		if len(free) < n {
			for _, d := range free {
				kept[d.UUID] = true
			}
			promised[profile] += n
			waiting = append(waiting, t)
			continue
		}
		l := &Lease{Job: t.claim.Job, Profile: profile, Since: time.Now()}
		for _, d := range p.topology.choose(free, n, p.cpus) {
			l.Devices = append(l.Devices, d.UUID)
		}
		p.give(l)
		t.lease = l
		close(t.called)
	}
	p.waiting = waiting
	for _, t := range p.waiting {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
}

// held counts the devices that a profile's jobs have.
func (p *Pool) held(profile string) (n int) {
	for _, l := range p.leases {
		if l.Profile == profile {
			n += len(l.Devices)
		}
	}
	return n
}
