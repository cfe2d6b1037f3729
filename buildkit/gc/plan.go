// Package gc makes room: by the size of all caches, by age and by what is free on the disk. It takes the oldest first,
// from those projects that have more than their share, and never what is held or pinned.
//
// It alone deletes caches and build results; BuildKit's own GC is off. When to do so is its caller's to say.
package gc

import (
	"cmp"
	"slices"
	"time"

	"gitlab.com/berth-ci/berth/buildkit/generation"
)

// Kind is what an item is.
type Kind string

// The kinds of items.
const (
	Mount      Kind = "mount"      // a directory that jobs and builds share
	Generation Kind = "generation" // all generations of a key
	Build      Kind = "build"      // a result of a build step
	Directory  Kind = "directory"  // a directory that jobs share, beside BuildKit
)

// Item is something that can be kept or deleted.
type Item struct {
	Kind    Kind
	Key     string // of a cache; what a build step says of itself
	ID      string // of BuildKit's record; neither of generations nor of directories
	Numbers []int  // of generations
	Project string // whose it is
	Size    int64
	Used    time.Time
	Held    bool // by a job, or by what is built upon it
	Pinned  bool
}

// Policy says what is kept. Zero is no limit.
type Policy struct {
	MaxBytes int64         // of all items
	MinFree  int64         // on the disk
	MaxAge   time.Duration // since the last use

	// Superseded is how many generations before the newest are kept for rollbacks; they go by age, too.
	Superseded int
	// Only tells whose items may go; nil for everybody's.
	Only func(project string) bool
	// Weight tells how large a project's share of MaxBytes is, relative to others; nil or 0 for 1.
	Weight func(project string) int
}

func (p Policy) concerns(project string) bool { return p.Only == nil || p.Only(project) }

func (p Policy) weight(project string) int64 {
	if p.Weight != nil {
		if w := p.Weight(project); w > 0 {
			return int64(w)
		}
	}
	return 1
}

// plan chooses the items to delete, where free bytes are left on the disk.
func plan(items []Item, p Policy, free int64, now time.Time) []Item {
	items = slices.DeleteFunc(slices.Clone(items), func(i Item) bool { return !p.concerns(i.Project) })
	s := newShares(items, p)
	var chosen, candidates []Item
	for _, item := range items {
		switch {
		case item.Held || item.Pinned:
		case p.MaxAge > 0 && now.Sub(item.Used) > p.MaxAge:
			chosen = append(chosen, item)
			s.take(item)
			free += item.Size
		default:
			candidates = append(candidates, item)
		}
	}
	slices.SortStableFunc(candidates, func(a, b Item) int { return a.Used.Compare(b.Used) })
	limit, limited := s.limit(p, free)
	if !limited {
		return chosen
	}
	for s.total > limit && len(candidates) > 0 {
		at := max(0, slices.IndexFunc(candidates, func(i Item) bool { return s.over(i.Project, limit) }))
		chosen = append(chosen, candidates[at])
		s.take(candidates[at])
		candidates = slices.Delete(candidates, at, at+1)
	}
	return chosen
}

// shares is how much of the room each project has and may have.
type shares struct {
	total, weights int64
	used, weight   map[string]int64 // by project
}

func newShares(items []Item, p Policy) *shares {
	s := &shares{used: map[string]int64{}, weight: map[string]int64{}}
	for _, item := range items {
		s.total += item.Size
		s.used[item.Project] += item.Size
		s.weight[item.Project] = p.weight(item.Project)
	}
	for _, w := range s.weight {
		s.weights += w
	}
	return s
}

func (s *shares) take(item Item) {
	s.total -= item.Size
	s.used[item.Project] -= item.Size
}

// limit is how much all items may take.
func (s *shares) limit(p Policy, free int64) (bytes int64, limited bool) {
	bytes = s.total
	if p.MaxBytes > 0 {
		bytes, limited = p.MaxBytes, true
	}
	if lack := p.MinFree - free; p.MinFree > 0 && lack > 0 {
		bytes, limited = min(bytes, max(0, s.total-lack)), true
	}
	return bytes, limited
}

// over tells whether a project has more than its share of the limit. It may have what others leave of theirs, until
// they want it.
func (s *shares) over(project string, limit int64) bool {
	return s.used[project]/s.weight[project] > limit/max(1, s.weights) && s.used[project] > 0
}

// superseded lists the generations of a key that are kept for nothing, by number.
func superseded(list []generation.Info, p Policy, now time.Time) []int {
	slices.SortFunc(list, func(a, b generation.Info) int { return cmp.Compare(b.Number, a.Number) })
	newest := slices.IndexFunc(list, func(g generation.Info) bool { return !g.Withdrawn })
	var numbers []int
	for i, g := range list {
		if i == newest || g.Pinned {
			continue
		}
		if i > max(0, newest)+p.Superseded || p.MaxAge > 0 && now.Sub(g.Created) > p.MaxAge {
			numbers = append(numbers, g.Number)
		}
	}
	return numbers
}
