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
func (s *Store) flatten(ctx context.Context, ref cache.ImmutableRef, info Info) (_ cache.ImmutableRef, err error) {
	// A clone tells the layers; nobody writes to it.
	view, err := s.Cache.New(ctx, ref, nil, cache.WithRecordType(TypeClone), cache.WithDescription(describe(info.Key, "flattening")))
	if err != nil {
		return nil, fmt.Errorf("read layers: %w", err)
	}
	defer func() { err = errors.Join(err, drop(ctx, view)) }()
	from, err := s.overlay(ctx, view.ID())
	if err != nil {
		return nil, err
	}
	flat, err := s.Cache.New(ctx, nil, nil, cache.WithRecordType(TypeClone), cache.WithDescription(describe(info.Key, info.Job)))
	if err != nil {
		return nil, fmt.Errorf("make flat layer: %w", err)
	}
	to, err := s.overlay(ctx, flat.ID())
	if err == nil {
		err = layer.Flatten(ctx, to.Upper, from.Lower)
	}
	if err != nil {
		return nil, errors.Join(err, drop(ctx, flat))
	}
	done, err := commit(ctx, flat)
	if err != nil {
		return nil, errors.Join(err, drop(ctx, flat))
	}
	info.Depth, info.Base = 1, ""
	if err := mark(done, info); err != nil {
		return nil, errors.Join(err, drop(ctx, done))
	}
	return done, nil
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
	flat, err := s.flatten(ctx, ref, deep)
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
	at := slices.IndexFunc(l.list, func(i Info) bool { return i.ID == deep.ID })
	if at < 0 {
		return nil // removed in between
	}
	info := l.list[at]
	info.ID, info.Depth, info.Base, info.Boot = flat.ID(), 1, "", ""
	if err := writeInfo(flat, info); err != nil {
		return err
	}
	if err := enter(flat, key); err != nil {
		return err
	}
	if err := s.retire(ctx, deep); err != nil {
		return err
	}
	l.list[at] = info
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
