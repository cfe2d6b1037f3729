package cachemount

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
	"github.com/moby/buildkit/solver/pb"

	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// Acquire lends a job a mount, after waiting for it if it must: errdefs.ErrUnavailable if that takes too long.
// That it is shared in another way at the time is errdefs.ErrConflict.
func (t *Table) Acquire(ctx context.Context, r Request) (_ *Mount, err error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if !t.ready.Load() {
		return nil, fmt.Errorf("caches are not served before those of surviving jobs are taken back: %w", errdefs.ErrFailedPrecondition)
	}
	k, err := t.join(r)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.leave(r.Key, k)
		}
	}()
	w := newWaiter(r)
	defer w.stop()
	if err := w.wait(ctx, k.granted, func() []Holder { return t.Holders(r.Key) }); err != nil {
		return nil, err
	}
	ref, err := t.get(ctx, r, w)
	if err != nil {
		return nil, err
	}
	return t.mount(ctx, ref, r, k)
}

// get takes the mount from BuildKit, whose builds are in no queue of ours.
func (t *Table) get(ctx context.Context, r Request, w *waiter) (cache.MutableRef, error) {
	if r.Sharing != spec.Shared {
		return t.await(ctx, r, w)
	}
	for {
		ref, forked, err := t.share(ctx, r)
		if err != nil || !forked {
			return ref, err
		}
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
		err = w.wait(ctx, again.Done(), builds)
		cancel()
		if errdefs.IsUnavailable(err) {
			return nil, conflict(r, "locked or private", builds())
		}
		if err != nil {
			return nil, err
		}
	}
}

func builds() []Holder { return []Holder{{Job: aBuild}} }

// await takes a locked mount, for which BuildKit may wait, or a private one.
func (t *Table) await(ctx context.Context, r Request, w *waiter) (cache.MutableRef, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type result struct {
		ref cache.MutableRef
		err error
	}
	got := make(chan result, 1)
	done := make(chan struct{})
	go func() {
		ref, err := t.ask(ctx, r)
		got <- result{ref, err}
		close(done)
	}()
	if err := w.wait(ctx, done, builds); err != nil {
		cancel(err)
		// It may have come in the same moment.
		if late := <-got; late.err == nil {
			err = errors.Join(err, drop(ctx, late.ref))
		}
		return nil, err
	}
	res := <-got
	if res.err != nil {
		return nil, fmt.Errorf("get cache %q: %w", r.Key, res.err)
	}
	return res.ref, nil
}

// share takes a shared mount. Where all records of its key are held, but not as shared, BuildKit makes a new one; that
// is a fork of the cache, and is taken back.
func (t *Table) share(ctx context.Context, r Request) (_ cache.MutableRef, forked bool, err error) {
	before, err := mounts.SearchCacheDir(ctx, t.Cache, r.Key, false)
	if err != nil {
		return nil, false, fmt.Errorf("search cache %q: %w", r.Key, err)
	}
	ref, err := t.ask(ctx, r)
	if err != nil {
		return nil, false, fmt.Errorf("get cache %q: %w", r.Key, err)
	}
	for _, md := range before {
		if md.ID() == ref.ID() {
			return ref, false, nil
		}
	}
	if len(before) == 0 {
		return ref, false, nil
	}
	if err := remove(ctx, ref); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// ask lets BuildKit find or make the record, as for a RUN step. Its mount manager is new for each, since one that is
// used again hands out what it has again.
func (t *Table) ask(ctx context.Context, r Request) (cache.MutableRef, error) {
	return mounts.NewMountManager(r.Job, t.Cache, t.Sessions).MountableCache(ctx, &pb.Mount{
		Dest:      r.Key,
		MountType: pb.MountType_CACHE,
		CacheOpt:  &pb.CacheOpt{ID: r.Key, Sharing: sharings[r.Sharing]},
	}, nil, nil)
}

var sharings = map[spec.Sharing]pb.CacheSharingOpt{
	spec.Shared:  pb.CacheSharingOpt_SHARED,
	spec.Locked:  pb.CacheSharingOpt_LOCKED,
	spec.Private: pb.CacheSharingOpt_PRIVATE,
}

// mount tells the directory of a record. The record goes if that fails.
func (t *Table) mount(ctx context.Context, ref cache.MutableRef, r Request, k *ticket) (_ *Mount, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, drop(ctx, ref))
		}
	}()
	mountable, err := ref.Mount(ctx, false, nil)
	if err != nil {
		return nil, fmt.Errorf("mount cache %q: %w", r.Key, err)
	}
	list, unmount, err := mountable.Mount()
	if err != nil {
		return nil, fmt.Errorf("mount cache %q: %w", r.Key, err)
	}
	// Without a parent it is a plain directory, which needs no mount of its own that a restart would lose.
	if len(list) != 1 || list[0].Type != "bind" {
		return nil, errors.Join(fmt.Errorf("cache %q is no directory: %w", r.Key, errdefs.ErrNotImplemented), unmount())
	}
	return &Mount{
		table: t, ticket: k, ref: ref, path: list[0].Source, unmount: unmount,
		record: Record{ID: ref.ID(), Key: r.Key, Job: r.Job, Sharing: r.Sharing, Since: k.Since},
	}, nil
}
