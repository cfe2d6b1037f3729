package worktree

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// kind is what became of a selected path.
type kind int

const (
	absent    kind = iota // never there
	untouched             // as in the base
	vanished              // was in the base, and is no more
	partial               // a directory that shows some of the base
	complete              // shows nothing of the base
)

// step is a selected path that goes as a whole.
type step struct {
	path   string
	kind   kind
	hidden []string // directories above it that hide what is below the upper directory
}

// byPath plans to take whole paths. errSlow if that cannot be.
func (p *Plan) byPath(ctx context.Context, paths []string, selection Selection) error {
	base, err := layer.OpenView(p.stack.Base)
	if err != nil {
		return err
	}
	defer base.Close()
	above := append(append([]string{}, p.stack.Above...), p.stack.Below...)
	var something, changed, needsBase, hidden bool
	root := &picked{}
	for _, path := range paths {
		s, err := p.step(ctx, base, path)
		if err != nil {
			return err
		}
		for _, dir := range s.hidden {
			// Without the mark it would show what other layers have there.
			if other, err := anyHas(above, dir); err != nil {
				return err
			} else if other {
				return errSlow
			}
		}
		p.quick = append(p.quick, s)
		root.add(path).all = true
		something = something || s.kind != absent && s.kind != vanished
		changed = changed || s.kind >= vanished
		needsBase = needsBase || s.kind == untouched || s.kind == partial
		hidden = hidden || len(s.hidden) > 0
		if s.kind == absent || s.kind == vanished {
			p.Warnings = append(p.Warnings, missing(path, selection.Dir))
		}
	}
	p.Warnings = append(selection.complaints(), p.Warnings...)
	if root.git() {
		p.Warnings = append(p.Warnings, gitWarning)
	}
	if !something {
		p.Verdict = Empty
		return nil
	}
	if _, extra, err := extra(base, root); err != nil {
		return err
	} else if extra {
		return errSlow // the base holds what is selected no more
	}
	switch {
	case !changed:
		p.Verdict = Unchanged
	case !needsBase:
		p.Verdict, p.apart = Fresh, true
	case hidden:
		return errSlow
	default:
		p.Verdict = UponBase
	}
	return nil
}

// step finds what became of a path.
func (p *Plan) step(ctx context.Context, base *layer.View, path string) (step, error) {
	for _, dir := range p.stack.Above {
		if t, err := trace(dir, path); err != nil {
			return step{}, err
		} else if t.there || t.hides() {
			return step{}, errSlow
		}
	}
	for _, dir := range p.stack.Below {
		if t, err := trace(dir, path); err != nil {
			return step{}, err
		} else if t.there {
			return step{}, errSlow
		}
	}
	s := step{path: path}
	was, err := baseHas(base, path)
	if err != nil {
		return step{}, err
	}
	t, err := trace(p.stack.Upper, path)
	if err != nil {
		return step{}, err
	}
	switch {
	case t.there && (!t.dir || t.opaque || !was.dir || len(t.opaqueAbove) > 0):
		s.kind, s.hidden = complete, t.opaqueAbove
	case t.there:
		s.kind = partial
	case t.hides() && was.there:
		s.kind = vanished
		if strings.Contains(path, "/") {
			// Directories above it may be there for its sake alone.
			return step{}, errSlow
		}
	case was.there:
		s.kind = untouched
	default:
		s.kind = absent
	}
	if s.kind < partial {
		return s, nil
	}
	differs, err := p.measure(ctx, path, t.dir)
	if err == nil && s.kind == partial && !differs {
		if same, err := p.sameDirs(base, path); err != nil {
			return step{}, err
		} else if same {
			s.kind = untouched
		}
	}
	return s, err
}

// trail is what a layer has at a path and on the way to it.
type trail struct {
	there       bool
	dir         bool
	opaque      bool     // the directory itself
	stopped     bool     // a whiteout is there, or a file or whiteout on the way
	opaqueAbove []string // directories on the way
}

// hides tells whether layers below are not seen at the path.
func (t trail) hides() bool { return t.stopped || len(t.opaqueAbove) > 0 }

// trace looks for a path in one layer, and follows no links.
func trace(root, path string) (trail, error) {
	var t trail
	v, err := layer.OpenView([]string{root})
	if err != nil {
		return t, err
	}
	defer func() { v.Close() }()
	names := strings.Split(path, "/")
	for i, name := range names {
		e, err := v.Lookup(name)
		if errdefs.IsNotFound(err) {
			t.stopped, err = v.Hidden(name)
			return t, err
		}
		if err != nil {
			return t, err
		}
		last := i == len(names)-1
		if !e.IsDir() {
			t.there, t.stopped = last, !last
			return t, nil
		}
		next, err := v.Open(name)
		if err != nil {
			return t, err
		}
		v.Close()
		v = next
		switch {
		case last:
			t.there, t.dir, t.opaque = true, true, v.Opaque()
		case v.Opaque():
			t.opaqueAbove = append(t.opaqueAbove, strings.Join(names[:i+1], "/"))
		}
	}
	return t, nil
}

// baseHas looks for a path in the base.
func baseHas(base *layer.View, path string) (trail, error) {
	dir, err := descend(base, filepath.Dir(path))
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return trail{}, nil
	}
	if err != nil {
		return trail{}, err
	}
	defer dir.Close()
	e, err := dir.Lookup(filepath.Base(path))
	if errdefs.IsNotFound(err) {
		return trail{}, nil
	}
	return trail{there: err == nil, dir: e.IsDir()}, err
}

func anyHas(layers []string, path string) (bool, error) {
	for _, dir := range layers {
		if t, err := trace(dir, path); err != nil || t.there {
			return t.there, err
		}
	}
	return false, nil
}

// measure counts what is to be taken of a path in the upper directory, and tells whether there is anything but
// directories.
func (p *Plan) measure(ctx context.Context, path string, dir bool) (differs bool, err error) {
	parent, err := p.upper(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	defer parent.Close()
	if !dir {
		e, err := parent.Lookup(filepath.Base(path))
		p.count(&e, true)
		return true, err
	}
	v, err := parent.Open(filepath.Base(path))
	if err != nil {
		return false, err
	}
	defer v.Close()
	return p.measureDir(ctx, v)
}

func (p *Plan) measureDir(ctx context.Context, v *layer.View) (differs bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	names, err := v.Marked()
	if err != nil {
		return false, err
	}
	differs = v.Opaque() || len(names) > 0
	entries, err := v.Entries()
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			p.count(&e, true)
			differs = true
			continue
		}
		sub, err := v.Open(e.Name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		d, err := p.measureDir(ctx, sub)
		sub.Close()
		if err != nil {
			return false, err
		}
		differs = differs || d
	}
	return differs, nil
}

// count notes a file that is to be taken, and whether it could be moved if it is the job's.
func (p *Plan) count(e *layer.Entry, movable bool) {
	p.Files++
	if e.Stat.Mode&unix.S_IFMT == unix.S_IFREG {
		p.Bytes += e.Stat.Size
	}
	if e.Layer == 0 && e.Stat.Nlink > 1 {
		key := inode{e.Stat.Dev, e.Stat.Ino}
		n := names{p.links[key].seen, uint64(e.Stat.Nlink)}
		if movable {
			n.seen++
		}
		p.links[key] = n
	}
}

// upper opens a directory of the upper directory alone.
func (p *Plan) upper(path string) (*layer.View, error) {
	v, err := layer.OpenView([]string{p.stack.Upper})
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return descend(v, path)
}

// sameDirs tells whether the directories in the upper directory at and below a path are those of the base.
func (p *Plan) sameDirs(base *layer.View, path string) (bool, error) {
	v, err := p.upper(path)
	if err != nil {
		return false, err
	}
	defer v.Close()
	b, err := descend(base, path)
	if err != nil {
		return false, err
	}
	defer b.Close()
	return sameDirs(v, b)
}

func sameDirs(v, base *layer.View) (bool, error) {
	if same, err := layer.SameAttributes(v.Path(), base.Path()); err != nil || !same {
		return false, err
	}
	entries, err := v.Entries()
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		b, err := base.Open(e.Name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		sub, err := v.Open(e.Name)
		if err != nil {
			b.Close()
			return false, err
		}
		same, err := sameDirs(sub, b)
		sub.Close()
		b.Close()
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// extra tells whether a base has anything that is not selected, but for directories that lead to something that is; and
// whether it holds something that is.
func extra(v *layer.View, picks *picked) (holds, extras bool, err error) {
	entries, err := v.Entries()
	if err != nil {
		return false, false, err
	}
	for _, e := range entries {
		sub := picks.sub[e.Name]
		switch {
		case sub == nil, !sub.all && !e.IsDir():
			return false, true, nil
		case sub.all:
			holds = true
			continue
		}
		dir, err := v.Open(e.Name)
		if err != nil {
			return false, false, err
		}
		h, x, err := extra(dir, sub)
		dir.Close()
		if err != nil {
			return false, false, err
		}
		if x || !h {
			return false, true, nil
		}
		holds = true
	}
	return holds, false, nil
}
