package generation

import (
	"context"
	"slices"
)

// Rollback makes an earlier generation, or one withdrawn, what jobs get. Those after it are withdrawn, and so are all
// clones of them: what they hold is not published.
func (s *Store) Rollback(ctx context.Context, key string, number int) (Info, error) {
	return s.change(ctx, key, number, func(info *Info) {
		info.Withdrawn = info.Number > number || info.Withdrawn && info.Number < number
	})
}

// Pin keeps a generation from GC, or no longer.
func (s *Store) Pin(ctx context.Context, key string, number int, pinned bool) (Info, error) {
	return s.change(ctx, key, number, func(info *Info) {
		if info.Number == number {
			info.Pinned = pinned
		}
	})
}

// change applies a change to the generations of a key, and returns that of the number.
func (s *Store) change(ctx context.Context, key string, number int, apply func(*Info)) (Info, error) {
	l := s.line(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.Clone(l.all())
	at := slices.IndexFunc(list, func(i Info) bool { return i.Number == number })
	if at < 0 {
		return Info{}, notFound(key, number)
	}
	if err := s.rewrite(ctx, key, apply); err != nil {
		return Info{}, err
	}
	for i := range list {
		apply(&list[i])
	}
	l.set(list)
	return list[at], nil
}

// rewrite changes the info of all records of a key, also of those that are published no longer: jobs may have clones
// of them. It goes from the newest down; cut short, a rollback has withdrawn some of the newest.
func (s *Store) rewrite(ctx context.Context, key string, apply func(*Info)) error {
	records, err := s.records(ctx, key)
	if err != nil {
		return err
	}
	for _, r := range slices.Backward(records) {
		changed := r.info
		if apply(&changed); changed == r.info {
			continue
		}
		if err := writeInfo(r.RefMetadata, changed); err != nil {
			return err
		}
	}
	return nil
}

// Remove forgets generations of a key, all if it is given no numbers; Collect takes their layers. With withdraw, what
// jobs still make of them is not published.
func (s *Store) Remove(ctx context.Context, key string, withdraw bool, numbers ...int) error {
	meant := func(i Info) bool { return len(numbers) == 0 || slices.Contains(numbers, i.Number) }
	l := s.line(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	if withdraw {
		if err := s.rewrite(ctx, key, func(i *Info) { i.Withdrawn = i.Withdrawn || meant(*i) }); err != nil {
			return err
		}
	}
	for _, info := range l.all() {
		if !meant(info) {
			continue
		}
		if err := s.forget(ctx, l, info); err != nil {
			return err
		}
	}
	return nil
}

// forget takes a generation out of the index. The caller holds the line.
func (s *Store) forget(ctx context.Context, l *line, info Info) error {
	if err := s.retire(ctx, info); err != nil {
		return err
	}
	l.set(slices.DeleteFunc(slices.Clone(l.all()), func(i Info) bool { return i.ID == info.ID }))
	return nil
}
