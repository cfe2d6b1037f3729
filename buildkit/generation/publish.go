package generation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Publish ends the clone and makes what it holds the newest generation of its key. The job's containers must no longer
// see it. If nothing was changed, the generation that it was cloned from is returned, and changed is false.
//
// A clone of a generation that was withdrawn is not published, but discarded: errdefs.ErrAborted. After any other
// error nothing is published, and Discard drops the clone.
func (c *Clone) Publish(ctx context.Context) (info Info, changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return Info{}, false, c.endedError()
	}
	if err := layer.Unmount(c.Path()); err != nil {
		return Info{}, false, err
	}
	if err := c.store.current(ctx, c.record); err != nil {
		if errdefs.IsAborted(err) {
			err = errors.Join(err, c.discard(ctx))
		}
		return Info{}, false, err
	}
	if base, ok := c.Base(); ok && base.Key == c.record.Key {
		same, err := layer.Same(c.overlay.Upper, c.overlay.Lower[0])
		if err != nil {
			return Info{}, false, err
		}
		if same {
			return base, false, c.discard(ctx)
		}
	}
	info = Info{Key: c.record.Key, Depth: len(c.overlay.Lower) + 1, Job: c.record.Job, Created: time.Now().UTC(), Note: c.note, Boot: c.store.boot}
	if c.record.Base != nil {
		info.Base, info.Size = c.record.Base.ID, c.record.Base.Size
	}
	if info.Depth > deepest {
		return Info{}, false, fmt.Errorf("publish cache %q: it has %d layers, and could not be flattened: %w", info.Key, info.Depth, errdefs.ErrResourceExhausted)
	}
	ref, err := commit(ctx, c.ref)
	if err != nil {
		return Info{}, false, fmt.Errorf("publish cache %q: %w", info.Key, err)
	}
	c.ended = true
	info, err = c.store.publish(ctx, ref, info, c.record)
	return info, err == nil, err
}

// Current is an error if the clone would not be published, since what it was made of was withdrawn: errdefs.ErrAborted.
func (c *Clone) Current(ctx context.Context) error { return c.store.current(ctx, c.record) }

// commit makes a writable record a layer. The record is its new reference's then, which may not be released before it
// is finalized: its data would go.
func commit(ctx context.Context, m cache.MutableRef) (cache.ImmutableRef, error) {
	ref, err := m.Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit layer: %w", err)
	}
	if err := ref.Finalize(ctx); err != nil {
		return nil, fmt.Errorf("finalize layer: %w", err)
	}
	return ref, nil
}

// publish indexes a layer, flattened before if it lies deep, and lets go of it.
func (s *Store) publish(ctx context.Context, ref cache.ImmutableRef, info Info, r Record) (_ Info, err error) {
	defer func() { err = errors.Join(err, drop(ctx, ref)) }()
	// Known since the layer was committed.
	usage, err := s.Snapshots.Usage(ctx, ref.ID())
	if err != nil {
		return Info{}, fmt.Errorf("measure layer: %w", err)
	}
	info.Size += usage.Size
	if err := mark(ref, info); err != nil {
		return Info{}, err
	}
	if info.Depth >= flattenNow {
		flat, shallow, err := s.flatten(ctx, ref, info)
		switch {
		case err == nil:
			defer func() { _ = drop(ctx, flat) }()
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
	if n := len(l.list); n > 0 {
		info.Number = l.list[n-1].Number + 1
	}
	if err := writeInfo(ref, info); err != nil {
		return Info{}, err
	}
	if err := enter(ref, info.Key); err != nil {
		return Info{}, err
	}
	l.list = append(l.list, info)
	s.settleSoon(info)
	if info.Depth >= flattenAt {
		s.flattenSoon(info.Key)
	}
	return info, nil
}

// mark makes a layer one of a key's, which Collect takes if it is never published, and BuildKit's own GC does not.
func mark(ref cache.ImmutableRef, info Info) error {
	if err := ref.SetRecordType(TypeGeneration); err != nil {
		return fmt.Errorf("mark generation: %w", err)
	}
	if err := ref.SetCachePolicyRetain(); err != nil {
		return fmt.Errorf("retain generation: %w", err)
	}
	return writeInfo(ref, info)
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
