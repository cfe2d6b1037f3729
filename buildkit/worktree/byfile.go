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
	lower, err := layer.OpenView(p.stack.all()[1:])
	if err != nil {
		return err
	}
	defer lower.Close()
	c := census{plan: p, same: len(p.stack.Base) > 0}
	if err := c.dir(ctx, visit{v: v, lower: lower, picks: p.picks, rel: "."}, base); err != nil {
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
func (c *census) dir(ctx context.Context, at visit, base *layer.View) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := at.v.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		picks := at.picks.below(e.Name)
		switch {
		case picks == nil:
			continue
		case e.IsDir():
			if err := c.sub(ctx, at, base, e.Name, picks); err != nil {
				return err
			}
		case picks.wanted():
			c.plan.count(&e, !at.hidden)
			c.count++
			c.same = c.same && c.fromBase(e.Layer)
		}
	}
	return nil
}

func (c *census) sub(ctx context.Context, at visit, base *layer.View, name string, picks *picked) error {
	next, err := at.enter(name, picks)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer next.close()
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
	if err := c.dir(ctx, next, below); err != nil {
		return err
	}
	if !picks.wanted() && c.count == before {
		return nil
	}
	c.count++
	if below == nil {
		c.same = false
	}
	if _, place := next.v.Top(); c.same && picks.wanted() && !c.fromBase(place) {
		c.same, err = layer.SameAttributes(next.v.Path(), below.Path())
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
	// marked says that the directory in the upper one hides what is below, where there is nothing.
	marked bool
	// hidden says that the upper directory hides here what is below: the new layer as well, whose files would vanish
	// from the job's view if it did not keep its own.
	hidden bool
}

// enter opens a directory; errdefs.ErrNotFound if it went meanwhile.
func (at visit) enter(name string, picks *picked) (visit, error) {
	next := visit{picks: picks, rel: filepath.Join(at.rel, name), hidden: at.hidden}
	var err error
	if next.v, err = at.v.Open(name); err != nil {
		return visit{}, err
	}
	if at.lower != nil {
		if next.lower, err = openIf(at.lower, name); err != nil {
			next.v.Close()
			return visit{}, err
		}
	}
	if _, place := next.v.Top(); place == 0 && next.v.Opaque() {
		next.marked = next.lower == nil
		next.hidden = next.hidden || !next.marked
	}
	return next, nil
}

func (at visit) close() {
	at.v.Close()
	if at.lower != nil {
		at.lower.Close()
	}
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
	next, err := at.enter(name, picks)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer next.close()
	if next.marked {
		if err := f.clear(next.rel); err != nil {
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
	return f.leave(next.rel, next.v)
}
