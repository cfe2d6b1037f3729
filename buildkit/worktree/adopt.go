package worktree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Guard mounts the parent of the project directory upon itself, so that Adopt can tell whether a process of the job
// still holds what lies in the directory. It does so before any container of the job starts: what was opened before
// goes around it. Directories right below the root have no parent that could be guarded; Adopt copies them.
func (r *Root) Guard(path string, uid, gid int) error {
	if err := r.guard(path, uid, gid); err != nil {
		return fmt.Errorf("guard project directory: %w", err)
	}
	return nil
}

func (r *Root) guard(path string, uid, gid int) error {
	if err := clean(path); err != nil {
		return err
	}
	parent := filepath.Dir(path)
	if parent == "." {
		return nil
	}
	fd, err := r.make(parent, uid, gid)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if at, err := place(fd); err != nil || at.root {
		return err
	}
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone mount: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("place mount: %w", err)
	}
	return nil
}

// unguard undoes Guard; false if the parent is not guarded.
func (r *Root) unguard(ctx context.Context, path string) (bool, error) {
	parent := filepath.Dir(path)
	if parent == "." {
		return false, nil
	}
	s, err := r.spot(parent)
	if err != nil {
		return false, err
	}
	at, err := s.on()
	s.close()
	if err != nil || !at.root {
		return false, err
	}
	return true, r.unmount(ctx, parent, func(now where) bool { return now.mount == at.mount })
}

// Adopt moves the plain directory that is at a path of the root into the upper directory of an overlay that has no
// other layers, in constant time, and leaves an empty one with the same owner to mount on. Both must be on one file
// system. Owner, mode and attributes of the directory go along.
//
// A process that holds something in the directory could go on writing to it past the overlay, also when it is
// published. So it is only moved if Guard shows that there is none, and copied otherwise.
//
// Whiteouts that the job forged come along. They are below nothing and above nothing but what else the job sees, so
// they can do no more than deleting files would.
func (r *Root) Adopt(ctx context.Context, path string, o layer.Overlay) (copied bool, err error) {
	if err := clean(path); err != nil {
		return false, err
	}
	if len(o.Lower) > 0 {
		return false, fmt.Errorf("adopt project directory: the overlay has layers already: %w", errdefs.ErrInvalidArgument)
	}
	if filepath.Dir(o.Upper) != filepath.Dir(o.Work) {
		return false, fmt.Errorf("adopt project directory: work and upper directory are not beside each other: %w", errdefs.ErrInvalidArgument)
	}
	copied, err = r.adopt(ctx, path, o)
	if err != nil {
		return copied, fmt.Errorf("adopt project directory: %w", err)
	}
	return copied, nil
}

func (r *Root) adopt(ctx context.Context, path string, o layer.Overlay) (copied bool, err error) {
	whole, err := r.whole(o.Upper)
	if err != nil {
		return false, err
	}
	defer whole.close()
	// Out of the job's reach first, but for who is inside already.
	taken := filepath.Join(o.Work, "adopted")
	if err := whole.exchange(path, taken); err != nil {
		return false, err
	}
	guarded, err := r.unguard(ctx, path)
	if err != nil && !errdefs.IsFailedPrecondition(err) {
		return false, err
	}
	if guarded && err == nil {
		if err := unix.Rename(taken, o.Upper); err != nil { // over an empty directory
			return false, fmt.Errorf("move it: %w", err)
		}
		return false, nil
	}
	v, err := layer.OpenView([]string{taken})
	if err != nil {
		return true, err
	}
	defer v.Close()
	if err := v.Copy(ctx, o.Upper, layer.CopyOptions{}); err != nil {
		return true, err
	}
	if err := os.RemoveAll(taken); err != nil {
		return true, fmt.Errorf("remove what was copied: %w", err)
	}
	return true, nil
}

// whole is a file system by a mount of its own on which nothing is mounted: renames stay within one mount.
type whole struct {
	mount int
	root  int // the root's directory
	upper int // the parent of an upper directory
}

// whole opens the file system that has both the root and an upper directory.
func (r *Root) whole(upper string) (_ *whole, err error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("find mounts: %w", err)
	}
	w := &whole{mount: -1, root: -1, upper: -1}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	at := func(path string) (*mountinfo.Info, string, error) {
		id, err := identity(path)
		if err != nil {
			return nil, "", err
		}
		for _, m := range mounts {
			if uint64(m.ID) == id.mount {
				rel, err := filepath.Rel(m.Mountpoint, path)
				return m, filepath.Join(m.Root, rel), err
			}
		}
		return nil, "", fmt.Errorf("%s has no mount: %w", path, errdefs.ErrNotFound)
	}
	from, rootPath, err := at(r.path)
	if err != nil {
		return nil, err
	}
	to, upperPath, err := at(filepath.Dir(upper))
	if err != nil {
		return nil, err
	}
	if from.Major != to.Major || from.Minor != to.Minor {
		return nil, fmt.Errorf("%s and %s are on different file systems; put builds and caches on one: %w", r.path, upper, unix.EXDEV)
	}
	for _, m := range mounts {
		if m.Major != to.Major || m.Minor != to.Minor || !within(rootPath, m.Root) || !within(upperPath, m.Root) {
			continue
		}
		if w.open(m, rootPath, upperPath) == nil {
			return w, nil
		}
		w.close()
	}
	return nil, fmt.Errorf("no mount has both %s and %s; put builds and caches on one: %w", r.path, upper, unix.EXDEV)
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// open opens a mount, unless it is covered by another.
func (w *whole) open(m *mountinfo.Info, root, upper string) (err error) {
	w.mount, w.root, w.upper = -1, -1, -1
	at, err := identity(m.Mountpoint)
	if err != nil {
		return err
	}
	if at.mount != uint64(m.ID) {
		return errdefs.ErrNotFound
	}
	if w.mount, err = clone(m.Mountpoint); err != nil {
		return err
	}
	below := func(path string) (int, error) {
		rel, err := filepath.Rel(m.Root, path)
		if err != nil {
			return -1, err
		}
		return open(w.mount, rel, 0)
	}
	if w.root, err = below(root); err != nil {
		return err
	}

	w.upper, err = below(upper)
	return err
}

func (w *whole) close() {
	for _, fd := range []int{w.mount, w.root, w.upper} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// exchange puts a new empty directory at a path of the root, and what was there at one beside the upper directory.
func (w *whole) exchange(path, taken string) error {
	parent, err := open(w.root, filepath.Dir(path), 0)
	if err != nil {
		return explain(path, err)
	}
	defer func() { _ = unix.Close(parent) }()
	was, err := open(parent, filepath.Base(path), 0)
	if err != nil {
		return explain(path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(was, &st)
	_ = unix.Close(was)
	if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if err := os.Mkdir(taken, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.Lchown(taken, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown directory: %w", err)
	}
	beside, err := open(w.upper, filepath.Base(filepath.Dir(taken)), 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", taken, err)
	}
	defer func() { _ = unix.Close(beside) }()
	err = unix.Renameat2(parent, filepath.Base(path), beside, filepath.Base(taken), unix.RENAME_EXCHANGE)
	if err != nil {
		return errors.Join(explain(path, err), os.Remove(taken))
	}
	return isDir(taken)
}

// isDir makes sure of what the job had there at the last moment.
func isDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("stat what was moved: %w", err)
	}
	if !info.IsDir() {
		return errors.Join(fmt.Errorf("the project directory is a %s: %w", info.Mode().Type(), errdefs.ErrFailedPrecondition), os.Remove(path))
	}
	return nil
}
