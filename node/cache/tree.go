package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/layer"
	"gitlab.com/berth-ci/berth/buildkit/worktree"
)

// Tree is the job's working tree as one overlay: what the project's last job left, the job's caches upon it, and the
// job's own writes on top.
type Tree struct {
	Clone generation.Record `json:"clone"` // takes the writes
	// Kept says that it began as the tree of an earlier job.
	Kept bool `json:"kept,omitempty"`
	// Mounted says that the job sees it.
	Mounted bool `json:"mounted,omitempty"`
}

// Part is layers of a cache in the tree.
type Part struct {
	Clone generation.Record `json:"clone"` // has them
	// Written says that it is what was written to the clone; else it is what the clone was made of.
	Written bool `json:"written,omitempty"`
	// Top says that it is the uppermost of those alone.
	Top bool `json:"top,omitempty"`
}

// layers are the directories of a part, from the uppermost down.
func (j *Job) layers(p Part) ([]string, error) {
	c := j.clones[p.Clone.ID]
	if c == nil {
		return nil, fmt.Errorf("a layer of cache %q is lost: %w", p.Clone.Key, errdefs.ErrNotFound)
	}
	switch o := c.Overlay(); {
	case p.Written:
		return []string{o.Upper}, nil
	case p.Top:
		return o.Lower[:min(1, len(o.Lower))], nil
	default:
		return o.Lower, nil
	}
}

// stack joins the layers of parts.
func (j *Job) stack(parts []Part) (layers []string, err error) {
	for _, p := range parts {
		of, err := j.layers(p)
		if err != nil {
			return nil, err
		}
		layers = append(layers, of...)
	}
	return layers, nil
}

// workspace is the tree without the job's caches.
func (j *Job) workspace() (layer.Overlay, error) {
	if c := j.clones[j.record.Tree.Clone.ID]; c != nil {
		return c.Overlay(), nil
	}
	return layer.Overlay{}, fmt.Errorf("the working tree's layer is lost: %w", errdefs.ErrNotFound)
}

// overlay is all of the tree's layers.
func (j *Job) overlay() (layer.Overlay, error) {
	o, err := j.workspace()
	if err != nil {
		return o, err
	}
	caches, err := j.stack(j.record.Parts)
	o.Lower = append(caches, o.Lower...)
	return o, err
}

// below opens the directory that the job's containers have as their builds directory.
func (j *Job) below(do func(*worktree.Root) error) error {
	root, err := worktree.OpenRoot(j.builds)
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

// mountTree mounts the tree where the job's containers see it, and the caches that lie in it.
func (j *Job) mountTree() error {
	o, err := j.overlay()
	if err != nil {
		return err
	}
	j.record.Tree.Mounted = true
	if err := j.write(); err != nil {
		return err
	}
	err = j.below(func(r *worktree.Root) error {
		return r.Mount(j.record.Sources.Dir, o, j.service.engine.Generations().Nothing())
	})
	if err != nil {
		j.record.Tree.Mounted = false
		return errors.Join(fmt.Errorf("mount working tree: %w", err), j.write())
	}
	return nil
}

// unmountTree takes the tree away from the job's containers: errdefs.ErrFailedPrecondition if they are in it.
func (j *Job) unmountTree(ctx context.Context) error {
	o, err := j.overlay()
	if err != nil {
		return err
	}
	if err := j.unbindInside(ctx); err != nil {
		return errors.Join(err, j.bindInside())
	}
	err = j.below(func(r *worktree.Root) error { return r.Unmount(ctx, j.record.Sources.Dir, o) })
	if err != nil {
		return errors.Join(err, j.bindInside())
	}
	return nil
}

// resume mounts the tree of a job again that berthd had taken away when it ended. One that is there is left alone.
func (j *Job) resume() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.record.Tree; t == nil || !t.Mounted {
		return nil
	}
	o, err := j.overlay()
	if err != nil {
		return err
	}
	var mounted bool
	err = j.below(func(r *worktree.Root) (err error) {
		mounted, err = r.Mounted(j.record.Sources.Dir, o)
		return err
	})
	if err != nil || mounted {
		return err
	}
	return errors.Join(j.mountTree(), j.bindInside())
}

// bindInside binds the caches whose targets are in the project's directory. One where a link or file is in the way is
// left out, which the job is to know.
func (j *Job) bindInside() error {
	return j.each(func(m *Mount) bool { return m.Inside != "" && m.Source != "" && !m.Bound }, j.bind)
}

func (j *Job) unbindInside(ctx context.Context) error {
	return j.each(func(m *Mount) bool { return m.Inside != "" && m.Bound }, func(m *Mount) error { return j.unbind(ctx, m) })
}

func (j *Job) each(which func(*Mount) bool, do func(*Mount) error) error {
	var errs []error
	for i := range j.record.Mounts {
		if m := &j.record.Mounts[i]; which(m) {
			errs = append(errs, do(m))
		}
	}
	return errors.Join(errs...)
}

// binding tells where a mount is bound while the containers run.
func (j *Job) binding(m *Mount) (dir string, b worktree.Binding) {
	b = worktree.Binding{Source: m.Source, ReadOnly: m.Spec.ReadOnly, UID: j.record.User.UID, GID: j.record.User.GID}
	if m.Stub != "" {
		b.Target = "."
		return m.Stub, b
	}
	b.Target = j.record.Sources.Dir + "/" + m.Inside
	return j.builds, b
}

func (j *Job) bind(m *Mount) error {
	dir, b := j.binding(m)
	root, err := worktree.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Bind(b); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	m.Bound = true
	return nil
}

func (j *Job) unbind(ctx context.Context, m *Mount) error {
	dir, b := j.binding(m)
	root, err := worktree.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Unbind(ctx, b); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	m.Bound = false
	return nil
}

// discardParts gives up the job's caches in the tree, which is not mounted with them.
func (j *Job) discardParts(ctx context.Context) {
	parts := j.record.Parts
	j.record.Parts = nil
	for _, p := range parts {
		if err := j.discard(ctx, p.Clone.ID); err != nil {
			j.log.WithError(err).Warn("cannot discard a clone")
		}
	}
}

// partOf finds the layers that an entry was given.
func (j *Job) partOf(e *Entry) int {
	return slices.IndexFunc(j.record.Parts, func(p Part) bool { return e.Part != "" && p.Clone.ID == e.Part })
}
