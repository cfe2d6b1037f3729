package cachemount

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
)

// Where BuildKit keeps these of a record.
const (
	keyValue  = "cache-dir"
	keyIndex  = "cache-dir:"
	usedValue = "cache.lastUsedAt"
)

// pinValue is ours: a directory that is kept from GC has it.
const pinValue = "berth.pinned"

// Usage is a directory of a cache mount.
type Usage struct {
	ID      string // of BuildKit's record
	Key     string
	Size    int64
	Created time.Time
	Used    time.Time // when it was last given back
	Holders []Holder  // of the key
	Pinned  bool      // kept from GC
}

// List tells all directories. It measures each by itself: BuildKit would hold it meanwhile, and hand an empty one to
// who comes then.
func (t *Table) List(ctx context.Context) ([]Usage, error) {
	found, err := t.Cache.Search(ctx, keyIndex, true)
	if err != nil {
		return nil, fmt.Errorf("search caches: %w", err)
	}
	list := make([]Usage, 0, len(found))
	for _, md := range found {
		u := Usage{ID: md.ID(), Key: md.GetString(keyValue), Created: md.GetCreatedAt(), Used: lastUsed(md), Pinned: md.GetString(pinValue) != ""}
		u.Holders = t.Holders(u.Key)
		size, err := t.Snapshots.Usage(ctx, u.ID)
		if errdefs.IsNotFound(err) {
			continue // removed in between
		}
		if err != nil {
			return nil, fmt.Errorf("measure cache %q: %w", u.Key, err)
		}
		u.Size = size.Size
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b Usage) int { return strings.Compare(a.Key+"\x00"+a.ID, b.Key+"\x00"+b.ID) })
	return list, nil
}

// lastUsed is the creation of what was never used, or is for the first time.
func lastUsed(md cache.RefMetadata) time.Time {
	var ns int64
	if v := md.Get(usedValue); v != nil && v.Unmarshal(&ns) == nil {
		return time.Unix(0, ns)
	}
	return md.GetCreatedAt()
}

// Exists tells whether there is a directory of a key.
func (t *Table) Exists(ctx context.Context, key string) (bool, error) {
	found, err := mounts.SearchCacheDir(ctx, t.Cache, key, false)
	if err != nil {
		return false, fmt.Errorf("search cache: %w", err)
	}
	return len(found) > 0, nil
}

// Pin keeps the directories of a key from GC, or no longer.
func (t *Table) Pin(ctx context.Context, key string, pinned bool) error {
	found, err := mounts.SearchCacheDir(ctx, t.Cache, key, false)
	if err != nil {
		return fmt.Errorf("search cache: %w", err)
	}
	if len(found) == 0 {
		return fmt.Errorf("there is no cache mount %q: %w", key, errdefs.ErrNotFound)
	}
	for _, md := range found {
		if pinned {
			err = md.SetString(pinValue, "true", "")
		} else {
			err = md.ClearValueAndIndex(pinValue, "")
		}
		if err != nil {
			return fmt.Errorf("pin cache %q: %w", key, err)
		}
	}
	return nil
}

// Remove deletes a directory, by its record. One that is held is left: errdefs.ErrFailedPrecondition.
func (t *Table) Remove(ctx context.Context, id string) error {
	ref, err := t.Cache.GetMutable(ctx, id)
	switch {
	case errors.Is(err, cache.ErrLocked):
		return fmt.Errorf("remove cache: %s is in use: %w", id, errdefs.ErrFailedPrecondition)
	case cache.IsNotFound(err):
		return fmt.Errorf("remove cache: no record %s: %w", id, errdefs.ErrNotFound)
	case err != nil:
		return fmt.Errorf("remove cache: %w", err)
	}
	return remove(ctx, ref)
}

// remove deletes a record that is held.
func remove(ctx context.Context, ref cache.MutableRef) error {
	err := errors.Join(
		mounts.CacheRefMetadata{RefMetadata: ref}.ClearCacheDirIndex(),
		ref.SetCachePolicyDefault(),
		drop(ctx, ref),
	)
	if err != nil {
		return fmt.Errorf("remove cache: %w", err)
	}
	return nil
}
