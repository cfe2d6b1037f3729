package worktree

import (
	"context"
	"path/filepath"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// byFile plans to take the selected files one by one.
func (p *Plan) byFile(ctx context.Context, selection Selection) error {
	v, err := layer.OpenView(p.stack.all())
	if err != nil {
		return err
	}
	defer v.Close()
	if p.picks, p.Warnings, err = selection.resolve(ctx, v); err != nil {
		return err
	}
	base, err := layer.OpenView(p.stack.Base)
	if err != nil {
		return err
	}
	defer base.Close()
	c := census{plan: p, same: len(p.stack.Base) > 0}
	if err := c.dir(ctx, v, base, p.picks); err != nil {
		return err
	}
	switch {
	case c.count == 0:
		p.Verdict = Empty
		return nil
	case c.same:
		// All of it is in the base. Is there more?
		all, err := population(ctx, base)
		if err != nil {
			return err
		}
		if c.same = all == c.count; c.same {
			p.Verdict, p.Files, p.Bytes = Unchanged, 0, 0
			return nil
		}
	}
	p.Verdict = Fresh
	return nil
}

// census counts what is selected, with the directories that lead there, and compares it with the base.
type census struct {
	plan  *Plan
	count int
	same  bool
}

func (c *census) fromBase(place int) bool {
	first := 1 + len(c.plan.stack.Above)
	return place >= first && place < first+len(c.plan.stack.Base)
}

// dir counts what is selected in a directory. base is what the base has there, nil for nothing.
func (c *census) dir(ctx context.Context, v, base *layer.View, picks *picked) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		sub := picks.below(e.Name)
		switch {
		case sub == nil:
			continue
		case e.IsDir():
			if err := c.sub(ctx, v, base, e.Name, sub); err != nil {
				return err
			}
		case sub.wanted():
			c.plan.count(&e)
			c.count++
			c.same = c.same && c.fromBase(e.Layer)
		}
	}
	return nil
}

func (c *census) sub(ctx context.Context, v, base *layer.View, name string, picks *picked) error {
	dir, err := v.Open(name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	var below *layer.View
	if base != nil {
		if below, err = openIf(base, name); err != nil {
			return err
		}
	}
	if below != nil {
		defer below.Close()
	}
	before := c.count
	if err := c.dir(ctx, dir, below, picks); err != nil {
		return err
	}
	if !picks.wanted() && c.count == before {
		return nil
	}
	c.count++
	if below == nil {
		c.same = false
	}
	if _, place := dir.Top(); c.same && picks.wanted() && !c.fromBase(place) {
		c.same, err = layer.SameAttributes(dir.Path(), below.Path())
	}
	return err
}

// openIf opens a directory; nil if there is none.
func openIf(v *layer.View, name string) (*layer.View, error) {
	dir, err := v.Open(name)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return dir, err
}

// population counts all that is in a directory.
func population(ctx context.Context, v *layer.View) (int, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	entries, err := v.Entries()
	if err != nil {
		return 0, err
	}
	count := len(entries)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		sub, err := v.Open(e.Name)
		if err != nil {
			return 0, err
		}
		n, err := population(ctx, sub)
		sub.Close()
		if err != nil {
			return 0, err
		}
		count += n
	}
	return count, nil
}

// byFile fills a layer with the selected files.
func (f *filling) byFile(ctx context.Context) error {
	lower, err := layer.OpenView(f.plan.stack.all()[1:])
	if err != nil {
		return err
	}
	defer lower.Close()
	return f.walk(ctx, visit{v: f.view, lower: lower, picks: f.plan.picks, rel: "."})
}

// visit is a directory while files are taken from it.
type visit struct {
	v     *layer.View
	lower *layer.View // what it would be without the upper directory; nil for none
	picks *picked
	rel   string
	// hidden says that the upper directory hides here what is below: the new layer as well, whose files would vanish
	// from the job's view if it did not keep its own.
	hidden bool
}

func (f *filling) walk(ctx context.Context, at visit) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := at.v.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		picks := at.picks.below(e.Name)
		rel := filepath.Join(at.rel, e.Name)
		switch {
		case picks == nil:
			continue
		case e.IsDir():
			err = f.enter(ctx, at, e.Name, picks)
		case picks.wanted():
			if err = f.mkdir(at.rel); err == nil {
				err = f.put(&e, rel, at.hidden)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *filling) enter(ctx context.Context, at visit, name string, picks *picked) error {
	v, err := at.v.Open(name)
	if errdefs.IsNotFound(err) {
		return nil // gone, while the directory is in use
	}
	if err != nil {
		return err
	}
	defer v.Close()
	next := visit{v: v, picks: picks, rel: filepath.Join(at.rel, name), hidden: at.hidden}
	if at.lower != nil {
		if next.lower, err = openIf(at.lower, name); err != nil {
			return err
		}
	}
	if next.lower != nil {
		defer next.lower.Close()
	}
	if _, place := v.Top(); place == 0 && v.Opaque() {
		if next.lower != nil {
			next.hidden = true
		} else if err := f.clear(next.rel); err != nil {
			return err
		}
	}
	if picks.wanted() {
		if err := f.mkdir(next.rel); err != nil {
			return err
		}
	}
	if err := f.walk(ctx, next); err != nil {
		return err
	}
	return f.leave(next.rel, v)
}
