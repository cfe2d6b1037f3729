package worktree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// filling is a layer in the making.
type filling struct {
	plan   *Plan
	view   *layer.View // the whole project directory
	upper  string
	dst    string
	byCopy bool

	made   map[string]bool        // directories of the layer
	copies map[inode]string       // of files with several names
	times  map[string]unix.Stat_t // of directories of the upper directory, before
	moves  []string               // out of the upper directory
	marks  []string               // directories of it that hide no more
}

func newFilling(p *Plan, dst string, byCopy bool) (*filling, error) {
	v, err := layer.OpenView(p.stack.all())
	if err != nil {
		return nil, err
	}
	return &filling{
		plan: p, view: v, upper: p.stack.Upper, dst: dst, byCopy: byCopy,
		made: map[string]bool{".": true}, copies: map[inode]string{}, times: map[string]unix.Stat_t{},
	}, nil
}

func (f *filling) close() { f.view.Close() }

// mkdir makes a directory of the layer with its parents.
func (f *filling) mkdir(rel string) error {
	if f.made[rel] {
		return nil
	}
	if err := f.mkdir(filepath.Dir(rel)); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(f.dst, rel), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	f.made[rel] = true
	return nil
}

// leave gives a directory, when it is complete, what the view shows of it.
func (f *filling) leave(rel string, v *layer.View) error {
	if err := f.restoreTimes(rel); err != nil || !f.made[rel] {
		return err
	}
	return layer.CopyAttributes(filepath.Join(f.dst, rel), v.Path())
}

// put puts a file into the layer.
func (f *filling) put(e *layer.Entry, rel string, hidden bool) error {
	if e.Layer > 0 {
		err := e.Link(filepath.Join(f.dst, rel))
		if !errors.Is(err, unix.EMLINK) {
			return err
		}
	}
	links := f.plan.links[inode{e.Stat.Dev, e.Stat.Ino}]
	if f.byCopy || hidden || e.Layer > 0 || links.seen != links.all {
		return f.copy(e, rel)
	}
	return f.move(rel)
}

func (f *filling) copy(e *layer.Entry, rel string) error {
	key, target := inode{e.Stat.Dev, e.Stat.Ino}, filepath.Join(f.dst, rel)
	if first, ok := f.copies[key]; ok {
		if err := os.Link(first, target); err != nil {
			return fmt.Errorf("link copy: %w", err)
		}
		return nil
	}
	err := e.Copy(target)
	if err != nil && f.byCopy {
		if _, there := os.Lstat(e.Path()); errors.Is(there, os.ErrNotExist) {
			return nil
		}
	}
	if err == nil && e.Stat.Nlink > 1 {
		f.copies[key] = target
	}
	return err
}

// move moves something out of the upper directory. No component of the path is a link, and nobody can change that.
func (f *filling) move(rel string) error {
	if err := f.keepTimes(filepath.Dir(rel)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(f.upper, rel), filepath.Join(f.dst, rel)); err != nil {
		return fmt.Errorf("move what the job wrote: %w", err)
	}
	f.moves = append(f.moves, rel)
	return nil
}

// clear lets a directory of the upper directory hide nothing any more, where there is nothing to hide.
func (f *filling) clear(rel string) error {
	if f.byCopy {
		return nil
	}
	if err := layer.SetOpaque(filepath.Join(f.upper, rel), false); err != nil {
		return err
	}
	f.marks = append(f.marks, rel)
	return nil
}

// keepTimes notes the times of a directory that is to be changed, which the job is to see no other.
func (f *filling) keepTimes(rel string) error {
	if _, ok := f.times[rel]; ok {
		return nil
	}
	var st unix.Stat_t
	path := filepath.Join(f.upper, rel)
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	f.times[rel] = st
	return nil
}

func (f *filling) restoreTimes(rel string) error {
	st, ok := f.times[rel]
	if !ok {
		return nil
	}
	return setTimes(filepath.Join(f.upper, rel), &st)
}

func setTimes(path string, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %s: %w", path, err)
	}
	return nil
}

// byPath fills a layer with whole paths.
func (f *filling) byPath(ctx context.Context) error {
	for _, s := range f.plan.quick {
		if s.kind == vanished && f.plan.Verdict == UponBase {
			if err := layer.MakeWhiteout(filepath.Join(f.dst, s.path)); err != nil {
				return err
			}
		}
		if s.kind < partial {
			continue
		}
		if err := f.mkdir(filepath.Dir(s.path)); err != nil {
			return err
		}
		for _, dir := range s.hidden {
			if err := f.clear(dir); err != nil {
				return err
			}
		}
		if f.byCopy {
			if err := f.copyPath(ctx, s.path); err != nil {
				return err
			}
		} else if err := f.move(s.path); err != nil {
			return err
		}
	}
	if f.byCopy {
		return nil
	}
	return f.separate(ctx)
}

// copyPath copies what the job wrote at a path.
func (f *filling) copyPath(ctx context.Context, rel string) error {
	parent, err := f.plan.upper(filepath.Dir(rel))
	if err != nil {
		return err
	}
	defer parent.Close()
	e, err := parent.Lookup(filepath.Base(rel))
	if err != nil {
		return err
	}
	if !e.IsDir() {
		return e.Copy(filepath.Join(f.dst, rel))
	}
	v, err := parent.Open(e.Name)
	if err != nil {
		return err
	}
	defer v.Close()
	target := filepath.Join(f.dst, rel)
	if err := os.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return v.Copy(ctx, target, layer.CopyOptions{Marks: f.plan.Verdict == UponBase})
}

// separate gives the layer files of its own for those that have further names in the upper directory, by which the
// job could go on writing to them.
func (f *filling) separate(ctx context.Context) error {
	apart := map[inode]bool{}
	for key, n := range f.plan.links {
		if n.seen != n.all {
			apart[key] = true
		}
	}
	if len(apart) == 0 {
		return nil
	}
	for _, rel := range f.moves {
		err := f.within(ctx, rel, func(e *layer.Entry, path string) error {
			if !apart[inode{e.Stat.Dev, e.Stat.Ino}] {
				return nil
			}
			return f.replace(e, path)
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// replace puts a copy in the place of a file of the layer.
func (f *filling) replace(e *layer.Entry, rel string) error {
	var st unix.Stat_t
	parent := filepath.Join(f.dst, filepath.Dir(rel))
	if err := unix.Lstat(parent, &st); err != nil {
		return fmt.Errorf("stat %s: %w", parent, err)
	}
	fresh := filepath.Join(filepath.Dir(rel), ".berth-"+rand.Text())
	if err := f.copy(e, fresh); err != nil {
		return err
	}
	target := filepath.Join(f.dst, rel)
	if err := os.Rename(filepath.Join(f.dst, fresh), target); err != nil {
		return fmt.Errorf("replace file with further names: %w", err)
	}
	key := inode{e.Stat.Dev, e.Stat.Ino}
	if f.copies[key] == filepath.Join(f.dst, fresh) {
		f.copies[key] = target
	}
	return setTimes(parent, &st)
}

// within calls file for all files of the layer at and below a path, and dir for all directories after.
func (f *filling) within(ctx context.Context, rel string,
	file func(e *layer.Entry, rel string) error, dir func(v *layer.View, rel string) error,
) error {
	root, err := layer.OpenView([]string{f.dst})
	if err != nil {
		return err
	}
	defer root.Close()
	parent, err := descend(root, filepath.Dir(rel))
	if err != nil {
		return err
	}
	defer parent.Close()
	e, err := parent.Lookup(filepath.Base(rel))
	if err != nil {
		return err
	}
	return each(ctx, parent, &e, rel, file, dir)
}

func each(ctx context.Context, parent *layer.View, e *layer.Entry, rel string,
	file func(e *layer.Entry, rel string) error, dir func(v *layer.View, rel string) error,
) error {
	if !e.IsDir() {
		if file == nil {
			return nil
		}
		return file(e, rel)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	v, err := parent.Open(e.Name)
	if err != nil {
		return err
	}
	defer v.Close()
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	for _, sub := range entries {
		if err := each(ctx, v, &sub, filepath.Join(rel, sub.Name), file, dir); err != nil {
			return err
		}
	}
	if dir == nil {
		return nil
	}
	return dir(v, rel)
}

// unmark takes the marks from a part of the layer that shows nothing of the base.
func (f *filling) unmark(rel string) error {
	return f.within(context.Background(), rel, nil, func(v *layer.View, rel string) error {
		marked, err := v.Marked()
		if err != nil {
			return err
		}
		path := filepath.Join(f.dst, rel)
		if v.Opaque() {
			if err := layer.SetOpaque(path, false); err != nil {
				return err
			}
		}
		if len(marked) == 0 {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("stat %s: %w", path, err)
		}
		for _, name := range marked {
			if err := os.Remove(filepath.Join(path, name)); err != nil {
				return fmt.Errorf("remove whiteout: %w", err)
			}
		}
		return setTimes(path, &st)
	})
}

// finish gives directories what the view shows of them, those that lead to what was moved as a whole included.
func (f *filling) finish() error {
	for rel := range f.times {
		if err := f.restoreTimes(rel); err != nil {
			return err
		}
	}
	if f.plan.picks != nil {
		return f.leave(".", f.view)
	}
	if err := f.leaveAll(); err != nil || f.byCopy || f.plan.Verdict == UponBase {
		return err
	}
	// Last, since it is not undone.
	for _, rel := range f.moves {
		if err := f.unmark(rel); err != nil {
			return err
		}
	}
	return nil
}

func (f *filling) leaveAll() error {
	dirs := sorted(f.made)
	for _, rel := range slices.Backward(dirs) {
		v, err := descend(f.view, rel)
		if err != nil {
			if f.byCopy && errdefs.IsNotFound(err) {
				continue
			}
			return err
		}
		err = f.leave(rel, v)
		v.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// undo puts back into the upper directory what was moved.
func (f *filling) undo() error {
	var errs []error
	for _, rel := range slices.Backward(f.moves) {
		errs = append(errs, os.Rename(filepath.Join(f.dst, rel), filepath.Join(f.upper, rel)))
	}
	for _, rel := range f.marks {
		errs = append(errs, layer.SetOpaque(filepath.Join(f.upper, rel), true))
	}
	for rel := range f.times {
		errs = append(errs, f.restoreTimes(rel))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("put back what the job wrote: %w", err)
	}
	return nil
}
