package generation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Clone is a job's own copy of a generation. It ends by Publish or Discard.
type Clone struct {
	store   *Store
	ref     cache.MutableRef
	record  Record
	overlay layer.Overlay

	mu    sync.Mutex
	note  string
	ended bool
}

// Record is what a job's journal keeps of a clone, for Retake.
type Record struct {
	ID   string // of BuildKit's record
	Key  string
	Job  string
	Base *Info `json:",omitempty"` // what it was cloned from; nil for an empty clone
}

// Clone makes a copy of the newest generation of a key, or an empty directory if there is none.
func (s *Store) Clone(ctx context.Context, key, job string) (*Clone, error) {
	for {
		base, ok := s.Newest(key)
		if !ok {
			return s.clone(ctx, Record{Key: key, Job: job})
		}
		c, err := s.clone(ctx, Record{Key: key, Job: job, Base: &base})
		if !cache.IsNotFound(err) {
			return c, err
		}
		// It was removed in between; or it is lost, which the index does not know yet.
		if again, ok := s.Newest(key); ok && again.ID == base.ID {
			if err := s.lost(ctx, base); err != nil {
				return nil, err
			}
		}
	}
}

// CloneOf makes a copy of a given generation, whose writes go to the key. They may be of different keys: the base of
// a cache that falls back to that of another branch is the other's.
func (s *Store) CloneOf(ctx context.Context, base Info, key, job string) (*Clone, error) {
	return s.clone(ctx, Record{Key: key, Job: job, Base: &base})
}

// Empty makes a clone of nothing, whatever there is of the key: what it holds takes the place of all that.
func (s *Store) Empty(ctx context.Context, key, job string) (*Clone, error) {
	return s.clone(ctx, Record{Key: key, Job: job})
}

func (s *Store) clone(ctx context.Context, r Record) (_ *Clone, err error) {
	if !s.ready.Load() {
		return nil, fmt.Errorf("caches are not served before those of surviving jobs are taken back: %w", errdefs.ErrFailedPrecondition)
	}
	var parent cache.ImmutableRef
	if r.Base != nil {
		if parent, err = s.Cache.Get(ctx, r.Base.ID, nil); err != nil {
			return nil, fmt.Errorf("get generation %d of cache %q: %w", r.Base.Number, r.Key, err)
		}
		defer func() { err = errors.Join(err, drop(ctx, parent)) }()
	}
	ref, err := s.Cache.New(ctx, parent, nil,
		cache.WithRecordType(TypeClone), cache.WithDescription(describe(r.Key, r.Job)))
	if err != nil {
		return nil, fmt.Errorf("clone cache %q: %w", r.Key, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, drop(ctx, ref))
		}
	}()
	r.ID = ref.ID()
	o, err := s.overlay(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if len(o.Lower) > 0 {
		if err := layer.CopyRoot(o.Upper, o.Lower[0]); err != nil {
			return nil, err
		}
	}
	return &Clone{store: s, ref: ref, record: r, overlay: o}, nil
}

// drop releases a record in spite of a context that may have ended.
func drop(ctx context.Context, ref cache.Ref) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return ref.Release(ctx)
}

func describe(key, job string) string {
	return fmt.Sprintf("cache %q of %s", key, job)
}

// lost takes a generation that BuildKit no longer has out of the index.
func (s *Store) lost(ctx context.Context, info Info) error {
	l := s.line(info.Key)
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.forget(ctx, l, info)
}

// overlay reads the layers of a writable record.
func (s *Store) overlay(ctx context.Context, id string) (layer.Overlay, error) {
	m, err := s.Snapshots.Mounts(ctx, id)
	if err != nil {
		return layer.Overlay{}, fmt.Errorf("read layers of clone: %w", err)
	}
	mounts, release, err := m.Mount()
	if err != nil {
		return layer.Overlay{}, fmt.Errorf("read layers of clone: %w", err)
	}
	// Nothing was mounted.
	if err := release(); err != nil {
		return layer.Overlay{}, fmt.Errorf("read layers of clone: %w", err)
	}
	return layer.FromMounts(mounts, func(upper string) string { return filepath.Join(filepath.Dir(upper), "work") })
}

// Record is for the job's journal, and to be written there before the clone is used.
func (c *Clone) Record() Record { return c.record }

// Base is the generation that was cloned; false for an empty clone.
func (c *Clone) Base() (Info, bool) {
	if c.record.Base == nil {
		return Info{}, false
	}
	return *c.record.Base, true
}

// Overlay is the clone's layers, for who mounts them together with others.
func (c *Clone) Overlay() layer.Overlay { return c.overlay }

// Note says something of what will be published, for who finds it.
func (c *Clone) Note(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note = text
}

// Path is where Mount mounts the clone.
func (c *Clone) Path() string { return filepath.Join(c.store.Dir, c.record.ID) }

// Mount mounts the clone at Path, unless it is.
func (c *Clone) Mount() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return c.endedError()
	}
	err := os.Mkdir(c.Path(), 0o700)
	if errors.Is(err, os.ErrExist) {
		var mounted bool
		if mounted, err = layer.Mounted(c.Path()); mounted {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := c.overlay.Mount(c.Path(), c.store.empty); err != nil {
		return errors.Join(err, os.Remove(c.Path()))
	}
	return nil
}

// Unmount undoes Mount. What containers of the job see of it they keep, until they end.
func (c *Clone) Unmount() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return layer.Unmount(c.Path())
}

// Fill writes a layer, as one lies in the upper directory of an overlay, into a clone that is not mounted. Its files
// are linked: they may not be written to after. An opaque layer takes the place of everything below.
func (c *Clone) Fill(ctx context.Context, dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return c.endedError()
	}
	mounted, err := layer.Mounted(c.Path())
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("fill clone of cache %q: it is mounted: %w", c.record.Key, errdefs.ErrFailedPrecondition)
	}
	hides, err := layer.Opaque(dir)
	if err != nil {
		return err
	}
	if hides && len(c.overlay.Lower) > 0 {
		return fmt.Errorf("the layer hides what is below it, and the kernel does not look at that of a root: fill an empty clone: %w", errdefs.ErrInvalidArgument)
	}
	return layer.Link(ctx, c.overlay.Upper, dir)
}

// Discard ends the clone and drops what was written.
func (c *Clone) Discard(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	if err := layer.Unmount(c.Path()); err != nil {
		return err
	}
	return c.discard(ctx)
}

// discard ends an unmounted clone.
func (c *Clone) discard(ctx context.Context) error {
	c.ended = true
	if err := c.ref.Release(ctx); err != nil {
		return fmt.Errorf("discard clone of cache %q: %w", c.record.Key, err)
	}
	return nil
}

func (c *Clone) endedError() error {
	return fmt.Errorf("clone of cache %q was published or discarded: %w", c.record.Key, errdefs.ErrFailedPrecondition)
}
