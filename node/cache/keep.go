package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/gc"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/node/api"
)

// Projects knows the paths of projects whose jobs have been on the node, by their keys.
type Projects func() (map[string]string, error)

// Keeper looks after what the node keeps, for operators and by itself.
type Keeper struct {
	service     *Service
	directories *Directories
	policy      gc.Policy
	projects    Projects
}

// Keeper makes one with the policy of the node. Weights of projects are by their paths.
func (s *Service) Keeper(p gc.Policy, projects Projects, d *Directories) *Keeper {
	return &Keeper{service: s, directories: d, policy: p, projects: projects}
}

func (k *Keeper) collector() *gc.Collector {
	c := k.service.engine.Collector(Project)
	c.Directories = k.directories
	return c
}

// named gives the policy with weights by the projects' keys.
func (k *Keeper) named(p gc.Policy) (gc.Policy, map[string]string, error) {
	paths, err := k.projects()
	if err != nil {
		return p, nil, err
	}
	if weight := p.Weight; weight != nil {
		p.Weight = func(project string) int { return weight(name(paths, project)) }
	}
	return p, paths, nil
}

// name is a project's path, or its key where that is not known.
func name(paths map[string]string, project string) string {
	switch {
	case project == gc.Builds:
		return "(builds)"
	case project == "node":
		return "(node)"
	case strings.HasPrefix(project, "g-"):
		return "(group)"
	}
	return cmp.Or(paths[project], project)
}

// Collect makes room as the node's policy says.
func (k *Keeper) Collect(ctx context.Context) ([]api.Cache, error) {
	return k.run(ctx, k.policy)
}

// Prune makes room as an operator says.
func (k *Keeper) Prune(ctx context.Context, r api.CachePrune) ([]api.Cache, error) {
	p := gc.Policy{MaxBytes: r.MaxBytes, MinFree: r.MinFree, MaxAge: r.MaxAge, Superseded: k.policy.Superseded, Weight: k.policy.Weight}
	if r.All {
		p = gc.Policy{MaxAge: time.Nanosecond}
	}
	if p.MaxBytes == 0 && p.MinFree == 0 && p.MaxAge == 0 {
		return nil, fmt.Errorf("nothing says what to remove: expected a size to keep, an age, room to make or all: %w", errdefs.ErrInvalidArgument)
	}
	if r.Project != "" {
		_, paths, err := k.named(p)
		if err != nil {
			return nil, err
		}
		p.Only = func(project string) bool { return name(paths, project) == r.Project || project == r.Project }
	}
	return k.run(ctx, p)
}

func (k *Keeper) run(ctx context.Context, p gc.Policy) ([]api.Cache, error) {
	p, paths, err := k.named(p)
	if err != nil {
		return nil, err
	}
	items, err := k.collector().Run(ctx, p)
	list := make([]api.Cache, 0, len(items))
	for _, i := range items {
		list = append(list, k.describe(i, paths))
	}
	return list, err
}

// List is all that the node keeps.
func (k *Keeper) List(ctx context.Context) ([]api.Cache, error) {
	_, paths, err := k.named(gc.Policy{})
	if err != nil {
		return nil, err
	}
	items, err := k.collector().List(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]api.Cache, 0, len(items))
	for _, i := range items {
		list = append(list, k.describe(i, paths))
	}
	return list, nil
}

func (k *Keeper) describe(i gc.Item, paths map[string]string) api.Cache {
	c := api.Cache{
		Key: i.Key, Kind: string(i.Kind), ID: i.ID, Project: name(paths, i.Project),
		Size: i.Size, Used: i.Used, Held: i.Held, Pinned: i.Pinned,
	}
	switch i.Kind {
	case gc.Mount:
		for _, h := range k.service.engine.Mounts().Holders(i.Key) {
			c.Holders = append(c.Holders, h.Job)
		}
	case gc.Directory:
		c.Holders = k.directories.Holders(i.Key)
	case gc.Generation:
		for _, g := range k.service.engine.Generations().List(i.Key) {
			c.Generations = append(c.Generations, generationOf(g))
		}
	}
	return c
}

func generationOf(g generation.Info) api.Generation {
	return api.Generation{
		Number: g.Number, Job: g.Job, Created: g.Created, Size: g.Size, Layers: g.Depth, Note: g.Note,
		Withdrawn: g.Withdrawn, Pinned: g.Pinned,
	}
}

// Pin keeps a cache from being collected, or no longer: the newest generation unless one is named.
func (k *Keeper) Pin(ctx context.Context, c api.CacheChange) error {
	if _, ok := directoryName(c.Key); ok {
		if err := whole(c); err != nil {
			return err
		}
		return k.directories.Pin(c.Key, c.Pinned)
	}
	store := k.service.engine.Generations()
	newest, ok := store.Newest(c.Key)
	if !ok {
		return k.service.engine.Mounts().Pin(ctx, c.Key, c.Pinned)
	}
	if c.Number == 0 && !c.Pinned {
		for _, g := range store.List(c.Key) {
			if g.Pinned {
				if _, err := store.Pin(ctx, c.Key, g.Number, false); err != nil {
					return err
				}
			}
		}
		return nil
	}
	_, err := store.Pin(ctx, c.Key, cmp.Or(c.Number, newest.Number), c.Pinned)
	return err
}

// whole is an error if a change is about a generation of what has none.
func whole(c api.CacheChange) error {
	if c.Number != 0 {
		return fmt.Errorf("cache %q is a directory that its jobs share, and has no generation %d: %w", c.Key, c.Number, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Rollback has jobs get an earlier generation again: the one before the newest unless one is named.
func (k *Keeper) Rollback(ctx context.Context, c api.CacheChange) (api.Generation, error) {
	if _, ok := directoryName(c.Key); ok {
		return api.Generation{}, fmt.Errorf("cache %q is a directory that its jobs share, and has no generations to go back to: %w", c.Key, errdefs.ErrInvalidArgument)
	}
	store := k.service.engine.Generations()
	list := slices.DeleteFunc(store.List(c.Key), func(g generation.Info) bool { return g.Withdrawn && c.Number == 0 })
	if c.Number == 0 {
		if len(list) < 2 {
			return api.Generation{}, fmt.Errorf("cache %q has no generation before its newest: %w", c.Key, errdefs.ErrNotFound)
		}
		c.Number = list[len(list)-2].Number
	}
	g, err := store.Rollback(ctx, c.Key, c.Number)
	return generationOf(g), err
}

// Remove forgets a cache, or one generation of it. What jobs hold of it they keep, and do not publish.
func (k *Keeper) Remove(ctx context.Context, c api.CacheChange) error {
	if _, ok := directoryName(c.Key); ok {
		if err := whole(c); err != nil {
			return err
		}
		return k.directories.Remove(c.Key)
	}
	store := k.service.engine.Generations()
	if list := store.List(c.Key); len(list) > 0 {
		var numbers []int
		if c.Number != 0 {
			if !slices.ContainsFunc(list, func(g generation.Info) bool { return g.Number == c.Number }) {
				return fmt.Errorf("cache %q has no generation %d: %w", c.Key, c.Number, errdefs.ErrNotFound)
			}
			numbers = []int{c.Number}
		}
		if err := store.Remove(ctx, c.Key, true, numbers...); err != nil {
			return err
		}
		return store.Collect(ctx)
	}
	mounts, err := k.service.engine.Mounts().List(ctx)
	if err != nil {
		return err
	}
	mounts = slices.DeleteFunc(mounts, func(u cachemount.Usage) bool { return u.Key != c.Key })
	if len(mounts) == 0 {
		return fmt.Errorf("there is no cache %q: %w", c.Key, errdefs.ErrNotFound)
	}
	for _, u := range mounts {
		if err := k.service.engine.Mounts().Remove(ctx, u.ID); err != nil {
			return err
		}
	}
	return nil
}
