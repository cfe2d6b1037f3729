package cache

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/worktree"
)

// resume puts right what berthd was about to do for a job when it ended.
func (j *Job) resume(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	errs := []error{j.remountClones()}
	if err := j.followParts(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	switch t := j.record.Tree; {
	case t == nil:
	case !t.Mounted || j.clones[t.Clone.ID] == nil:
		// It was about to be made, or was published.
		errs = append(errs, j.giveUpTree(ctx))
	default:
		errs = append(errs, j.ensureTree())
	}
	return errors.Join(append(errs, j.write())...)
}

// remountClones mounts the copies that the job was about to get. Those that were published are nowhere any more.
func (j *Job) remountClones() error {
	return j.each(func(m *Mount) bool { return m.Clone != nil }, func(m *Mount) error {
		if c := j.clones[m.Clone.ID]; c != nil {
			return c.Mount()
		}
		m.Source = ""
		return nil
	})
}

// followParts finds the layers of clones that were published when berthd ended.
func (j *Job) followParts(ctx context.Context) error {
	for _, p := range j.record.Parts {
		if j.clones[p.Clone.ID] != nil {
			continue
		}
		info, ok := j.service.engine.Generations().Published(p.Clone)
		if !ok || !p.Written {
			return fmt.Errorf("a layer of cache %q is lost: %w", p.Clone.Key, errdefs.ErrDataLoss)
		}
		for i := range j.record.Entries {
			if e := &j.record.Entries[i]; e.Key == p.Clone.Key && e.Outcome == "" {
				if err := j.follow(ctx, e, p.Clone, info, true); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// giveUpTree leaves a plain, empty directory in the tree's place, for get_sources to fill again.
func (j *Job) giveUpTree(ctx context.Context) error {
	id := j.record.Tree.Clone.ID
	j.record.Tree, j.record.Again = nil, true
	j.discardParts(ctx)
	for i := range j.record.Entries {
		e := &j.record.Entries[i]
		e.Key, e.Hit, e.Base, e.Part = "", "", nil, ""
	}
	return errors.Join(j.write(), j.discard(ctx, id))
}

// ensureTree mounts the tree, and what lies in it, where it is not.
func (j *Job) ensureTree() error {
	o, err := j.overlay()
	if err != nil {
		return err
	}
	var mounted bool
	err = j.below(func(r *worktree.Root) (err error) {
		mounted, err = r.Mounted(j.record.Sources.Dir, o)
		return err
	})
	if err != nil {
		return err
	}
	if !mounted {
		if err := j.mountTree(); err != nil {
			return err
		}
	}
	return j.bindInside()
}

// became is what a clone became when it was published, though berthd ended before it noted that.
func (j *Job) became(r generation.Record) (generation.Info, bool) {
	return j.service.engine.Generations().Published(r)
}
