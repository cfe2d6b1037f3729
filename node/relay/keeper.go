package relay

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
)

// Keeper is berthd's side of a relay: it has listeners kept, and a relay that
// was started again told of them.
type Keeper struct {
	*Client

	mu   sync.Mutex
	pid  int // of the relay that has them
	jobs map[string]map[string]net.Listener
}

// NewKeeper makes the keeper of the relay at a socket.
func NewKeeper(socket string) *Keeper {
	return &Keeper{Client: NewClient(socket), jobs: map[string]map[string]net.Listener{}}
}

// Teach gives a new relay what the last one had, but for its streams. It is
// to be called whenever one was started, until it succeeds.
func (k *Keeper) Teach(ctx context.Context) error {
	v, err := k.Version(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if v.PID == k.pid {
		return nil
	}
	for job, sockets := range k.jobs {
		for name, l := range sockets {
			if err := k.Put(ctx, job, name, l.(syscall.Conn)); errdefs.IsUnavailable(err) {
				return err // others are of listeners that have just been closed
			}
		}
	}
	k.pid = v.PID
	return nil
}

// Listen gives the listener of a job that an earlier berthd had under a name,
// or makes it. It is kept until Release; closing it ends nothing but this
// berthd's part in it.
func (k *Keeper) Listen(ctx context.Context, job, name string, listen func() (net.Listener, error)) (net.Listener, error) {
	l, err := k.Get(ctx, job, name)
	kept := err == nil
	if !kept {
		if !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
			return nil, fmt.Errorf("find socket %s: %w", name, err)
		}
		if l, err = listen(); err != nil {
			return nil, err
		}
	}
	socket, ok := l.(syscall.Conn)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("keep socket %s: it is none: %w", name, errdefs.ErrInvalidArgument)
	}
	k.mu.Lock()
	if k.jobs[job] == nil {
		k.jobs[job] = map[string]net.Listener{}
	}
	k.jobs[job][name] = l
	k.mu.Unlock()
	if kept {
		return l, nil
	}
	// A relay that is just being started again is told of it by Teach.
	if err := k.Put(ctx, job, name, socket); err != nil && !errdefs.IsUnavailable(err) {
		l.Close()
		return nil, fmt.Errorf("keep socket %s: %w", name, err)
	}
	return l, nil
}

// Release ends all that is kept of a job.
func (k *Keeper) Release(ctx context.Context, job string) error {
	k.mu.Lock()
	delete(k.jobs, job)
	k.mu.Unlock()
	return k.Client.Release(ctx, job)
}

// Jobs lists the jobs of which there is anything.
func (k *Keeper) Jobs(ctx context.Context) ([]string, error) {
	all, err := k.List(ctx)
	return slices.Collect(maps.Keys(all)), err
}
