package generation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/buildkit/cache"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// flatten makes a layer without a parent that holds what ref shows, by hardlinks.
func (s *Store) flatten(ctx context.Context, ref cache.ImmutableRef, info Info) (_ cache.ImmutableRef, _ Info, err error) {
	// A clone tells the layers; nobody writes to it.
	view, err := s.Cache.New(ctx, ref, nil, cache.WithRecordType(TypeClone), cache.WithDescription(describe(info.Key, "flattening")))
	if err != nil {
		return nil, Info{}, fmt.Errorf("read layers: %w", err)
	}
	defer func() { err = errors.Join(err, drop(ctx, view)) }()
	from, err := s.overlay(ctx, view.ID())
	if err != nil {
		return nil, Info{}, err
	}
	flat, err := s.Cache.New(ctx, nil, nil, cache.WithRecordType(TypeClone), cache.WithDescription(describe(info.Key, info.Job)))
	if err != nil {
		return nil, Info{}, fmt.Errorf("make flat layer: %w", err)
	}
	to, err := s.overlay(ctx, flat.ID())
	if err == nil {
		err = layer.Flatten(ctx, to.Upper, from.Lower)
	}
	if err != nil {
		return nil, Info{}, errors.Join(err, drop(ctx, flat))
	}
	info.Depth, info.Base = 1, ""
	done, err := commit(ctx, flat, info)
	if err != nil {
		return nil, Info{}, errors.Join(err, drop(ctx, flat))
	}
	usage, err := s.Snapshots.Usage(ctx, done.ID())
	if err == nil {
		info.ID, info.Size = done.ID(), usage.Size
		err = mark(done)
	}
	if err != nil {
		return nil, Info{}, errors.Join(err, drop(ctx, done))
	}
	return done, info, nil
}

// replace puts a flat generation in the place of the newest of a key, if that is deep. Publishing goes on meanwhile;
// what is published upon the deep one is the next to be flattened.
func (s *Store) replace(ctx context.Context, key string) (err error) {
	deep, ok := s.Newest(key)
	if !ok || deep.Depth < flattenAt {
		return nil
	}
	ref, err := s.Cache.Get(ctx, deep.ID, nil)
	if err != nil {
		return fmt.Errorf("get generation: %w", err)
	}
	defer func() { err = errors.Join(err, drop(ctx, ref)) }()
	flat, shallow, err := s.flatten(ctx, ref, deep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(ctx, flat)) }()
	// What it takes the place of may long be on disk.
	if err := s.sync(); err != nil {
		return err
	}

	l := s.line(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.Clone(l.all())
	at := slices.IndexFunc(list, func(i Info) bool { return i.ID == deep.ID })
	if at < 0 {
		return nil // removed in between
	}
	info := list[at]
	info.ID, info.Depth, info.Base, info.Size, info.Boot = shallow.ID, shallow.Depth, "", shallow.Size, ""
	if err := writeInfo(flat, info); err != nil {
		return err
	}
	if err := enter(flat, key); err != nil {
		return err
	}
	if err := s.retire(ctx, deep); err != nil {
		return err
	}
	list[at] = info
	l.set(list)
	return nil
}

// flattening replaces deep generations one after another.
func (s *Store) flattening(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.deep.ready:
		}
		for key := range s.deep.take() {
			if err := s.replace(ctx, key); err != nil && context.Cause(ctx) == nil {
				logrus.WithError(err).WithField("cache", key).Warn("cannot flatten cache")
			}
		}
	}
}
