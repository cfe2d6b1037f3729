package cachemount

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver/llbsolver/mounts"

	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// Retake takes back, after a restart, the mounts of jobs that live on, by what their journals say: locks are in memory
// alone. Until it was called nothing is lent. Records that BuildKit lost come back.
func (t *Table) Retake(ctx context.Context, records []Record) (taken []*Mount, lost []Record, err error) {
	// Shared ones are found by key; what is held otherwise has to be out of the way.
	records = slices.Clone(records)
	slices.SortStableFunc(records, func(a, b Record) int { return order(a) - order(b) })
	for _, r := range records {
		m, err := t.retake(ctx, r)
		switch {
		// A record may be without its directory after a crash.
		case cache.IsNotFound(err), errdefs.IsNotFound(err):
			lost = append(lost, r)
		case err != nil:
			return nil, nil, fmt.Errorf("take back cache %q of %s: %w", r.Key, r.Job, err)
		default:
			taken = append(taken, m)
		}
	}
	t.ready.Store(true)
	return taken, lost, nil
}

func order(r Record) int {
	if r.Sharing == spec.Shared {
		return 1
	}
	return 0
}

func (t *Table) retake(ctx context.Context, r Record) (_ *Mount, err error) {
	req := Request{Key: r.Key, Job: r.Job, Sharing: r.Sharing}
	if err := req.validate(); err != nil {
		return nil, err
	}
	var ref cache.MutableRef
	if r.Sharing == spec.Shared {
		ref, err = t.reshare(ctx, req, r.ID)
	} else {
		ref, err = t.Cache.GetMutable(ctx, r.ID)
	}
	if err != nil {
		return nil, err
	}
	k, err := t.rejoin(r)
	if err != nil {
		return nil, errors.Join(err, drop(ctx, ref))
	}
	m, err := t.mount(ctx, ref, req, k)
	if err != nil {
		t.leave(r.Key, k)
		return nil, err
	}
	m.record.Since = r.Since
	return m, nil
}

// rejoin holds a place in the queue, whoever else does: the job has the mount already.
func (t *Table) rejoin(r Record) (*ticket, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[r.Key]
	if q == nil {
		q = &queue{sharing: r.Sharing}
		t.queues[r.Key] = q
	}
	if q.sharing != r.Sharing {
		return nil, conflict(Request{Key: r.Key, Sharing: r.Sharing}, string(q.sharing), holdersOf(q.holders))
	}
	k := &ticket{Holder: Holder{Job: r.Job, Since: r.Since}, granted: make(chan struct{})}
	close(k.granted)
	q.holders = append(q.holders, k)
	return k, nil
}

// reshare has BuildKit share a record of its key and no other, by holding the others meanwhile.
func (t *Table) reshare(ctx context.Context, r Request, id string) (_ cache.MutableRef, err error) {
	all, err := mounts.SearchCacheDir(ctx, t.Cache, r.Key, false)
	if err != nil {
		return nil, fmt.Errorf("search cache: %w", err)
	}
	there := false
	for _, md := range all {
		if md.ID() == id {
			there = true
			continue
		}
		other, err := t.Cache.GetMutable(ctx, md.ID())
		if errors.Is(err, cache.ErrLocked) || cache.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("hold cache: %w", err)
		}
		defer func() { err = errors.Join(err, drop(ctx, other)) }()
	}
	if !there {
		_, err := t.Cache.GetMutable(ctx, id)
		if err == nil {
			err = fmt.Errorf("record %s is not of this cache", id)
		}
		return nil, err
	}
	ref, err := t.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	if ref.ID() != id {
		return nil, errors.Join(fmt.Errorf("record %s is locked", id), remove(ctx, ref))
	}
	return ref, nil
}
