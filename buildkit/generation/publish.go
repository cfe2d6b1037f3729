package generation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Publish ends the clone and makes what it holds the newest generation of its key. The job's containers must no longer
// see it. If nothing was changed, the generation that it was cloned from is returned, and changed is false; the clone
// is left for Discard, so that who is killed before he has noted the outcome finds it again.
//
// A clone of a generation that was withdrawn is not published: errdefs.ErrAborted. After any error Discard drops the
// clone, which Ended tells to be good for nothing else, or not.
func (c *Clone) Publish(ctx context.Context) (info Info, changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	same, err := c.unchanged(ctx)
	if err != nil {
		return Info{}, false, err
	}
	if same {
		return *c.record.Base, false, nil
	}
	ref, info, err := c.commit(ctx)
	if err != nil {
		return Info{}, false, err
	}
	info, err = c.store.publish(ctx, ref, info, c.record)
	return info, err == nil, err
}

// Advance publishes the clone as Publish does, and clones what was published, with which the job goes on. Both happen
// at the same time. A clone in which nothing was changed goes on as it is, and is the next itself. With an error, a
// generation that has an ID was published all the same.
func (c *Clone) Advance(ctx context.Context) (info Info, next *Clone, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	same, err := c.unchanged(ctx)
	if err != nil {
		return Info{}, nil, err
	}
	if same {
		return *c.record.Base, c, nil
	}
	ref, info, err := c.commit(ctx)
	if err != nil {
		return Info{}, nil, err
	}
	r := Record{Key: c.record.Key, Job: c.record.Job, Base: &info}
	if info.Depth >= flattenNow { // what is published is another record
		if info, err = c.store.publish(ctx, ref, info, c.record); err == nil {
			next, err = c.store.clone(ctx, r)
		}
		return info, next, err
	}
	parent := ref.Clone()
	cloned := make(chan error, 1)
	go func() {
		defer c.store.dropSoon(ctx, parent)
		var err error
		next, err = c.store.cloneRef(ctx, parent, r)
		cloned <- err
	}()
	published, err := c.store.publish(ctx, ref, info, c.record)
	errClone := <-cloned
	switch {
	case err != nil && errClone == nil:
		return Info{}, nil, errors.Join(err, next.Discard(context.WithoutCancel(ctx)))
	case err != nil || errClone != nil:
		return published, nil, errors.Join(err, errClone)
	}
	next.record.Base = &published
	return published, next, nil
}

// unchanged tells whether there is nothing to publish.
func (c *Clone) unchanged(ctx context.Context) (bool, error) {
	if c.ended {
		return false, c.endedError()
	}
	if err := layer.Unmount(c.Path()); err != nil {
		return false, err
	}
	if err := c.store.current(ctx, c.record); err != nil {
		return false, err
	}
	if base, ok := c.Base(); ok && base.Key == c.record.Key {
		return layer.Same(c.overlay.Upper, c.overlay.Lower[0])
	}
	return false, nil
}

// info is what the clone is published as. Its number, and the size of its own layer, come last.
func (c *Clone) info() Info {
	info := Info{Key: c.record.Key, Depth: len(c.overlay.Lower) + 1, Job: c.record.Job, Created: time.Now().UTC(), Note: c.note, Clone: c.record.ID, Boot: c.store.boot}
	if c.record.Base != nil {
		info.Base, info.Size = c.record.Base.ID, c.record.Base.Size
	}
	return info
}

// commit ends the clone and makes a layer of it.
func (c *Clone) commit(ctx context.Context) (cache.ImmutableRef, Info, error) {
	info := c.info()
	if info.Depth > deepest {
		return nil, Info{}, fmt.Errorf("publish cache %q: it has %d layers, and could not be flattened: %w", info.Key, info.Depth, errdefs.ErrResourceExhausted)
	}
	ref, err := commit(ctx, c.ref, info)
	if err != nil {
		return nil, Info{}, fmt.Errorf("publish cache %q: %w", info.Key, err)
	}
	c.ended = true
	return ref, info, nil
}

// Ended tells whether the clone is one no more.
func (c *Clone) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Current is an error if the clone would not be published, since what it was made of was withdrawn: errdefs.ErrAborted.
func (c *Clone) Current(ctx context.Context) error { return c.store.current(ctx, c.record) }

// commit makes a writable record a layer, which tells from the first moment what it is to become: after it was
// finalized there is no record any more that it was. The record is its new reference's, which may not be released before
// it is finalized: its data would go.
func commit(ctx context.Context, m cache.MutableRef, info Info) (cache.ImmutableRef, error) {
	ref, err := m.Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit layer: %w", err)
	}
	if err := writeInfo(ref, info); err != nil {
		return nil, err
	}
	if err := ref.Finalize(ctx); err != nil {
		return nil, fmt.Errorf("finalize layer: %w", err)
	}
	return ref, nil
}

// publish indexes a layer, flattened before if it lies deep, and lets go of it.
func (s *Store) publish(ctx context.Context, ref cache.ImmutableRef, info Info, r Record) (_ Info, err error) {
	defer s.dropSoon(ctx, ref)
	// Known since the layer was committed.
	usage, err := s.Snapshots.Usage(ctx, ref.ID())
	if err != nil {
		return Info{}, fmt.Errorf("measure layer: %w", err)
	}
	info.Size += usage.Size
	if err := mark(ref); err != nil {
		return Info{}, err
	}
	if info.Depth >= flattenNow {
		flat, shallow, err := s.flatten(ctx, ref, info)
		switch {
		case err == nil:
			defer s.dropSoon(ctx, flat)
			info, ref = shallow, flat
		case context.Cause(ctx) != nil:
			return Info{}, err
		default:
			logrus.WithError(err).WithField("cache", info.Key).Warn("cannot flatten a deep cache")
		}
	}
	info.ID = ref.ID()
	l := s.line(info.Key)
	l.mu.Lock()
	defer l.mu.Unlock()
	// Again, since a rollback may have come in between.
	if err := s.current(ctx, r); err != nil {
		return Info{}, err
	}
	info.Number = 1
	list := l.all()
	if n := len(list); n > 0 {
		info.Number = list[n-1].Number + 1
	}
	if err := enter(ref, info.Key); err != nil {
		return Info{}, err
	}
	// With the number it is published.
	if err := writeInfo(ref, info); err != nil {
		return Info{}, errors.Join(err, retire(ref))
	}
	l.set(append(slices.Clone(list), info))
	s.settleSoon(info)
	if info.Depth >= flattenAt {
		s.flattenSoon(info.Key)
	}
	return info, nil
}

// mark makes a layer, whose info is written, one that BuildKit's own GC does not take, but Collect, if it is never
// published.
func mark(ref cache.ImmutableRef) error {
	if err := ref.SetRecordType(TypeGeneration); err != nil {
		return fmt.Errorf("mark generation: %w", err)
	}
	if err := ref.SetCachePolicyRetain(); err != nil {
		return fmt.Errorf("retain generation: %w", err)
	}
	return nil
}

// current is an error if what a clone was made of was withdrawn.
func (s *Store) current(ctx context.Context, r Record) error {
	if r.Base == nil {
		return nil
	}
	records, err := s.records(ctx, r.Base.Key)
	if err != nil {
		return err
	}
	for _, known := range records {
		if known.info.ID == r.Base.ID && known.info.Withdrawn {
			return fmt.Errorf("cache %q is not published: generation %d, which the job began with, was withdrawn: %w", r.Key, r.Base.Number, errdefs.ErrAborted)
		}
	}
	return nil
}
