package imagegc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
)

// Config is what a Keeper looks after.
type Config struct {
	Client      *containerd.Client
	Snapshotter string
	// Disk is a directory on the disk that images fill up.
	Disk   string
	Policy Policy
	// Jobs lists those on the node.
	Jobs func() []api.Job
	// Projects gives the paths of projects by their keys.
	Projects func() (map[string]string, error)
}

// Keeper looks after the node's images, for operators and by itself.
type Keeper struct {
	Config
	client *containerd.Client
	jobs   func() []api.Job
	opened time.Time
	// running is held by whoever removes images.
	running sync.Mutex

	mu   sync.Mutex
	uses uses
}

// New makes a keeper. It comes before jobs are admitted.
func New(c Config) *Keeper {
	return &Keeper{Config: c, client: c.Client, jobs: c.Jobs, opened: time.Now(), uses: uses{}}
}

// passes bounds how often a run looks again: what other things have a part in
// becomes free with them only.
const passes = 4

// Collect removes what the node's policy does not keep, and tells what went.
func (k *Keeper) Collect(ctx context.Context) ([]api.Image, error) {
	if due, err := k.due(ctx); err != nil || !due {
		return nil, err
	}
	return k.run(ctx, k.Policy, false)
}

// due tells at little cost whether there may be something to remove.
func (k *Keeper) due(ctx context.Context) (bool, error) {
	free, err := k.free()
	if err != nil || free < k.Policy.MinFree || k.Policy.MaxSize > 0 {
		return true, err
	}
	list, err := k.client.ImageService().List(ctx)
	if err != nil {
		return false, fmt.Errorf("list images: %w", err)
	}
	now := time.Now()
	for _, i := range list {
		one := Image{Name: i.Name, Used: lastuse.Of(i), Ours: lastuse.Ours(i)}
		if k.Policy.removable(one, now) && k.Policy.expired(one, now) != "" {
			return true, nil
		}
	}
	return false, nil
}

func (k *Keeper) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(k.Disk, &st); err != nil {
		return 0, fmt.Errorf("measure disk: %w", err)
	}
	return int64(st.Bavail) * st.Frsize, nil
}

func (k *Keeper) stock(ctx context.Context) (*Stock, error) {
	s, err := takeStock(ctx, k.client, k.Snapshotter)
	if err != nil {
		return nil, err
	}
	k.addUsers(s.Images)
	return s, nil
}

// run removes what a policy does not keep, or tells what it would.
func (k *Keeper) run(ctx context.Context, p Policy, dry bool) (removed []api.Image, err error) {
	k.running.Lock()
	defer k.running.Unlock()
	paths, err := k.Projects()
	if err != nil {
		return nil, err
	}
	for range passes {
		stock, err := k.stock(ctx)
		if err != nil {
			return removed, err
		}
		free, err := k.free()
		if err != nil {
			return removed, err
		}
		chosen := stock.plan(p, free, time.Now())
		if dry {
			for _, c := range chosen {
				removed = append(removed, describe(c.Image, paths, c.Why, c.Frees))
			}
			return removed, nil
		}
		went, err := k.removeAll(ctx, chosen)
		for _, c := range went {
			removed = append(removed, describe(c.Image, paths, c.Why, c.Frees))
		}
		if err != nil || len(went) == 0 {
			return removed, err
		}
	}
	return removed, nil
}

// removeAll removes images, and tells which went. Killed in between, it has
// removed some names, whose content containerd deletes on its own.
func (k *Keeper) removeAll(ctx context.Context, chosen []Choice) (went []Choice, err error) {
	for _, c := range chosen {
		gone, removeErr := k.remove(ctx, c.Image)
		if removeErr != nil {
			err = removeErr
			break
		}
		if gone {
			went = append(went, c)
		}
	}
	if len(went) > 0 {
		err = errors.Join(err, k.sweep(ctx))
	}
	return went, err
}

// remove removes one name, unless it has been used, or given to another image,
// since stock was taken. Nobody in berthd begins to use it meanwhile. What
// berth prepares, it has noted before, or its lease holds it without the name.
func (k *Keeper) remove(ctx context.Context, i Image) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.uses.of(i.Name, i.Target)) > 0 {
		return false, nil
	}
	store := k.client.ImageService()
	now, err := store.Get(ctx, i.Name)
	if err == nil {
		if now.Target.Digest != i.Target || lastuse.Of(now).Truncate(time.Second).After(i.Used) {
			return false, nil
		}
		err = store.Delete(ctx, i.Name, images.DeleteTarget(&now.Target))
	}
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove image %s: %w", i.Name, err)
	}
	return true, nil
}

// sweep has containerd delete at once what nothing holds any more.
func (k *Keeper) sweep(ctx context.Context) error {
	l, err := k.client.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err == nil {
		err = k.client.LeasesService().Delete(ctx, l, leases.SynchronousDelete)
	}
	if err != nil {
		return fmt.Errorf("delete the content of images: %w", err)
	}
	return nil
}

// Prune removes images as an operator says.
func (k *Keeper) Prune(ctx context.Context, r api.ImagePrune) ([]api.Image, error) {
	p := Policy{MaxSize: r.MaxBytes, MinFree: r.MinFree, MaxAge: r.MaxAge}
	if r.All {
		p = Policy{MaxAge: time.Nanosecond}
	}
	if p.MaxSize == 0 && p.MinFree == 0 && p.MaxAge == 0 {
		return nil, fmt.Errorf("nothing says what to remove: expected a size to keep, an age, room to make or all: %w", errdefs.ErrInvalidArgument)
	}
	if r.Project != "" {
		paths, err := k.Projects()
		if err != nil {
			return nil, err
		}
		p.Only = func(i Image) bool {
			s, _, ok := names.Whose(i.Name)
			return ok && (s.Project == r.Project || paths[s.Project] == r.Project)
		}
	}
	return k.run(ctx, p, r.DryRun)
}

// List is all images that are there by Berth.
func (k *Keeper) List(ctx context.Context) ([]api.Image, error) {
	paths, err := k.Projects()
	if err != nil {
		return nil, err
	}
	stock, err := k.stock(ctx)
	if err != nil {
		return nil, err
	}
	list := []api.Image{}
	for _, i := range stock.Images {
		if i.Ours {
			list = append(list, describe(i, paths, "", i.Unique))
		}
	}
	return list, nil
}

// Remove removes an image by its stored name.
func (k *Keeper) Remove(ctx context.Context, name string) error {
	k.running.Lock()
	defer k.running.Unlock()
	stock, err := k.stock(ctx)
	if err != nil {
		return err
	}
	for _, i := range stock.Images {
		switch {
		case i.Name != name:
			continue
		case !i.Ours:
			return fmt.Errorf("image %s was not put there by Berth: remove it with what put it there: %w", name, errdefs.ErrPermissionDenied)
		case len(i.Users) > 0:
			return fmt.Errorf("image %s is in use by %s: %w", name, strings.Join(i.Users, ", "), errdefs.ErrFailedPrecondition)
		}
		gone, err := k.remove(ctx, i)
		if err != nil {
			return err
		}
		if !gone {
			return fmt.Errorf("image %s has just been used: %w", name, errdefs.ErrFailedPrecondition)
		}
		return k.sweep(ctx)
	}
	return fmt.Errorf("there is no image %s: %w", name, errdefs.ErrNotFound)
}

// describe says what operators want to know of an image.
func describe(i Image, paths map[string]string, why string, frees int64) api.Image {
	d := api.Image{
		Name: i.Name, Image: i.Name, Digest: i.Target.String(), Size: i.Size, Unique: frees, Used: i.Used, Users: i.Users, Reason: why,
	}
	if s, named, ok := names.Whose(i.Name); ok {
		d.Image, d.Project, d.Protected = reference.FamiliarString(named), cmp.Or(paths[s.Project], s.Project), s.Protected
	} else if named, err := reference.ParseNormalizedNamed(i.Name); err == nil {
		d.Image = reference.FamiliarString(named)
	}
	if strings.HasPrefix(i.Name, dangling) {
		d.Image = "<none>@" + i.Target.String()
	}
	return d
}
