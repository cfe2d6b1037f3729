package generation

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/moby/buildkit/client"
)

// Usage is the room that the generations of a key take.
type Usage struct {
	Key         string
	Generations []Info // oldest first; none if only layers are left
	Size        int64  // of all layers made for the key
	Used        time.Time
	Held        bool // by clones
	Pinned      bool
}

// Layers is the directory of all layers, on the disk that caches fill.
func (s *Store) Layers() string { return s.layers }

// Nothing is an empty directory, the lower layer of what has none.
func (s *Store) Nothing() string { return s.empty }

// Usage measures all keys, in order.
func (s *Store) Usage(ctx context.Context) ([]Usage, error) {
	found, err := s.Cache.Search(ctx, infoIndex, true)
	if err != nil {
		return nil, fmt.Errorf("search generations: %w", err)
	}
	measured, err := s.Cache.DiskUsage(ctx, client.DiskUsageInfo{Filter: []string{"type==" + string(TypeGeneration)}})
	if err != nil {
		return nil, fmt.Errorf("measure generations: %w", err)
	}
	sizes := make(map[string]*client.UsageInfo, len(measured))
	for _, u := range measured {
		sizes[u.ID] = u
	}
	keys := map[string]*Usage{}
	for _, md := range found {
		info, err := readInfo(md)
		if err != nil {
			return nil, err
		}
		u := keys[info.Key]
		if u == nil {
			u = &Usage{Key: info.Key, Generations: s.List(info.Key)}
			u.Pinned = slices.ContainsFunc(u.Generations, func(i Info) bool { return i.Pinned })
			keys[info.Key] = u
		}
		u.add(info, sizes[info.ID])
	}
	list := make([]Usage, 0, len(keys))
	for _, u := range keys {
		list = append(list, *u)
	}
	slices.SortFunc(list, func(a, b Usage) int { return cmp.Compare(a.Key, b.Key) })
	return list, nil
}

func (u *Usage) add(info Info, measured *client.UsageInfo) {
	if info.Created.After(u.Used) {
		u.Used = info.Created
	}
	if measured == nil {
		return
	}
	u.Size += measured.Size
	u.Held = u.Held || measured.InUse
	if measured.LastUsedAt != nil && measured.LastUsedAt.After(u.Used) {
		u.Used = *measured.LastUsedAt
	}
}
