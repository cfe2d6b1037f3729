package generation

import (
	"context"
	"errors"

	"github.com/moby/buildkit/cache"
)

// FlattenAt is the depth from which chains are flattened.
const FlattenAt = flattenAt

// FlattenNow is the depth that nothing published has.
const FlattenNow = flattenNow

// Crash makes a generation look as one of which the host went down before its data was on disk.
func (s *Store) Crash(ctx context.Context, key string, number int) error {
	return s.rewrite(ctx, key, func(i *Info) {
		if i.Number == number {
			i.Boot = "another"
		}
	})
}

// Records counts the layers of a key.
func (s *Store) Records(ctx context.Context, key string) (int, error) {
	records, err := s.records(ctx, key)
	return len(records), err
}

// Flatten flattens the newest generation of a key, and drops the result.
func (s *Store) Flatten(ctx context.Context, key string) (err error) {
	info, _ := s.Newest(key)
	ref, err := s.Cache.Get(ctx, info.ID, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(ctx, ref)) }()
	flat, _, err := s.flatten(ctx, ref, info)
	if err != nil {
		return err
	}
	return drop(ctx, flat)
}

// PublishSteps are those that Publish takes one after another, when there is something to publish.
var PublishSteps = []string{"commit", "tell", "finalize", "mark", "enter"}

// PublishUntil does what Publish does up to a step, as one that is killed then.
func (c *Clone) PublishUntil(ctx context.Context, last string) error {
	info := c.info()
	var ref cache.ImmutableRef
	steps := map[string]func() error{
		"commit":   func() (err error) { ref, err = c.ref.Commit(ctx); return err },
		"tell":     func() error { return writeInfo(ref, info) },
		"finalize": func() error { return ref.Finalize(ctx) },
		"mark":     func() error { return mark(ref) },
		"enter":    func() error { return enter(ref, info.Key) },
	}
	for _, name := range PublishSteps {
		if err := steps[name](); err != nil || name == last {
			return err
		}
	}
	return nil
}
