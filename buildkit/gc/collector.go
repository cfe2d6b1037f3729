package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/generation"
)

// Collector deletes what a policy does not keep.
type Collector struct {
	Mounts      *cachemount.Table
	Generations *generation.Store
	Cache       cache.Manager
	// Directories are collected along; nil for none.
	Directories Directories
	// Sweep has containerd delete at once what nothing holds any more.
	Sweep func(context.Context) error
	// Disk is a directory on the disk that fills up.
	Disk string
	// Project tells whose a key is.
	Project func(key string) string
}

// Directories are those that jobs share, and BuildKit does not know of.
type Directories interface {
	// List tells all but whose they are.
	List(context.Context) ([]Item, error)
	// Remove has one deleted: errdefs.ErrFailedPrecondition if it is held, errdefs.ErrNotFound if there is none.
	Remove(key string) error
	// Freeing is how much is being deleted, and not free yet.
	Freeing() int64
}

// Builds is the project of all build results, which nobody owns.
const Builds = "docker build"

// List is all items: caches of each kind by key, then build results.
func (c *Collector) List(ctx context.Context) ([]Item, error) {
	mounts, err := c.Mounts.List(ctx)
	if err != nil {
		return nil, err
	}
	generations, err := c.Generations.Usage(ctx)
	if err != nil {
		return nil, err
	}
	builds, err := c.builds(ctx)
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, m := range mounts {
		items = append(items, Item{
			Kind: Mount, Key: m.Key, ID: m.ID, Project: c.Project(m.Key),
			Size: m.Size, Used: m.Used, Held: len(m.Holders) > 0, Pinned: m.Pinned,
		})
	}
	for _, g := range generations {
		var numbers []int
		for _, info := range g.Generations {
			numbers = append(numbers, info.Number)
		}
		items = append(items, Item{
			Kind: Generation, Key: g.Key, Numbers: numbers, Project: c.Project(g.Key),
			Size: g.Size, Used: g.Used, Pinned: g.Pinned,
			// Layers without a generation are those of other keys' generations.
			Held: g.Held || len(g.Generations) == 0,
		})
	}
	directories, err := c.directories(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Concat(items, directories, builds), nil
}

func (c *Collector) directories(ctx context.Context) ([]Item, error) {
	if c.Directories == nil {
		return nil, nil
	}
	items, err := c.Directories.List(ctx)
	if err != nil {
		return nil, err
	}
	for i := range items {
		items[i].Project = c.Project(items[i].Key)
	}
	return items, nil
}

// builds is what is neither a cache nor a clone of one. BuildKit may not be asked for all: it would measure cache
// mounts in a way that forks them.
func (c *Collector) builds(ctx context.Context) ([]Item, error) {
	filter := strings.Join([]string{
		"type!=" + string(client.UsageRecordTypeCacheMount),
		"type!=" + string(generation.TypeClone),
		"type!=" + string(generation.TypeGeneration),
	}, ",")
	usage, err := c.Cache.DiskUsage(ctx, client.DiskUsageInfo{Filter: []string{filter}})
	if err != nil {
		return nil, fmt.Errorf("measure build results: %w", err)
	}
	var items []Item
	for _, u := range usage {
		// What an image has, too, is the image's.
		if u.Shared {
			continue
		}
		used := u.CreatedAt
		if u.LastUsedAt != nil {
			used = *u.LastUsedAt
		}
		items = append(items, Item{
			Kind: Build, Key: u.Description, ID: u.ID, Project: Builds, Size: u.Size, Used: used, Held: u.InUse,
		})
	}
	return items, nil
}

// passes bounds how often Run looks again: what layers share by hardlinks is freed with the last of them only.
const passes = 4

// Run deletes what the policy does not keep, and tells what went.
func (c *Collector) Run(ctx context.Context, p Policy) (removed []Item, err error) {
	if err := c.supersede(ctx, p); err != nil {
		return nil, err
	}
	for range passes {
		items, err := c.List(ctx)
		if err != nil {
			return removed, err
		}
		free, err := c.free()
		if err != nil {
			return removed, err
		}
		went, err := c.delete(ctx, plan(items, p, free, time.Now()))
		removed = append(removed, went...)
		if err != nil || len(went) == 0 {
			return removed, err
		}
	}
	return removed, nil
}

// free is what is free on the disk, or is about to be.
func (c *Collector) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(c.Disk, &st); err != nil {
		return 0, fmt.Errorf("measure disk: %w", err)
	}
	free := int64(st.Bavail) * st.Frsize
	if c.Directories != nil {
		free += c.Directories.Freeing()
	}
	return free, nil
}

// supersede deletes the generations that are kept for nothing.
func (c *Collector) supersede(ctx context.Context, p Policy) error {
	for _, key := range c.Generations.Keys() {
		if !p.concerns(c.Project(key)) {
			continue
		}
		numbers := superseded(c.Generations.List(key), p, time.Now())
		if len(numbers) == 0 {
			continue
		}
		if err := c.Generations.Remove(ctx, key, false, numbers...); err != nil {
			return err
		}
	}
	return c.Generations.Collect(ctx)
}

// delete deletes items, and tells which went: one that a job has taken since stays.
func (c *Collector) delete(ctx context.Context, items []Item) (went []Item, err error) {
	if len(items) == 0 {
		return nil, nil
	}
	var builds []string
	for _, item := range items {
		switch item.Kind {
		case Mount:
			err = c.Mounts.Remove(ctx, item.ID)
		case Generation:
			err = c.Generations.Remove(ctx, item.Key, false, item.Numbers...)
		case Directory:
			err = c.Directories.Remove(item.Key)
		case Build:
			builds = append(builds, "id=="+item.ID)
		}
		if errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return went, err
		}
		went = append(went, item)
	}
	if len(builds) > 0 {
		err = c.Cache.Prune(ctx, nil, client.PruneInfo{All: true, Filter: builds})
	}
	return went, errors.Join(err, c.Generations.Collect(ctx), c.Sweep(ctx))
}
