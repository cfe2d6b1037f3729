package worktree

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Binding is a directory of the host to be seen below a root.
type Binding struct {
	Target   string // below the root; "." for the root itself
	Source   string // on the host
	ReadOnly bool
	UID, GID int // own the directories that are made for it
}

// Bind binds a directory, and makes the directories that it needs. The job's repository decides what is at the
// target: a link there is refused, with errdefs.ErrFailedPrecondition.
func (r *Root) Bind(b Binding) error {
	if err := r.bind(b); err != nil {
		return fmt.Errorf("target %w", err)
	}
	return nil
}

func (r *Root) bind(b Binding) error {
	var fd int
	var err error
	if b.Target == "." {
		fd, err = unix.FcntlInt(uintptr(r.dir), unix.F_DUPFD_CLOEXEC, 0)
	} else if err = clean(b.Target); err == nil {
		fd, err = r.make(b.Target, b.UID, b.GID)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	bound, err := r.bound(b)
	if err != nil {
		return err
	}
	if bound {
		return fmt.Errorf("%s: %s is bound there: %w", b.Target, b.Source, errdefs.ErrAlreadyExists)
	}
	tree, err := detached(b)
	if err != nil {
		return fmt.Errorf("%s: bind %s: %w", b.Target, b.Source, err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("%s: bind %s: %w", b.Target, b.Source, err)
	}
	return nil
}

// bound tells whether the source is what is at the target.
func (r *Root) bound(b Binding) (bool, error) {
	source, err := identity(b.Source)
	if err != nil {
		return false, err
	}
	s, err := r.spot(b.Target)
	if err != nil {
		return false, err
	}
	defer s.close()
	at, err := s.on()
	return err == nil && at.root && at.dev == source.dev && at.ino == source.ino, err
}

func identity(dir string) (where, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return where{}, fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return place(fd)
}

// Unbind undoes Bind, and leaves the directories that it made. It is no error if nothing is bound there.
// errdefs.ErrFailedPrecondition if it is in use, or the job has moved it.
func (r *Root) Unbind(ctx context.Context, b Binding) error {
	err := r.unbind(ctx, b)
	if err != nil {
		return fmt.Errorf("target %w", err)
	}
	return nil
}

func (r *Root) unbind(ctx context.Context, b Binding) error {
	source, err := identity(b.Source)
	if err != nil {
		return err
	}
	bound, err := r.bound(b)
	if err == nil && bound {
		return r.unmount(ctx, b.Target, func(at where) bool { return at.dev == source.dev && at.ino == source.ino })
	}
	// Not there; but is it anywhere?
	elsewhere, searched := r.boundElsewhere(source)
	if searched != nil {
		return searched
	}
	if elsewhere {
		return moved(b.Target, errors.Join(err, errors.New("it is elsewhere")))
	}
	return nil
}

// detached makes a mount of a directory that is nowhere yet.
func detached(b Binding) (int, error) {
	tree, err := clone(b.Source)
	if err != nil || !b.ReadOnly {
		return tree, err
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err == nil {
		return tree, nil
	}
	_ = unix.Close(tree)
	if !errors.Is(err, unix.ENOSYS) {
		return -1, fmt.Errorf("make mount read-only: %w", err)
	}
	return staged(b.Source)
}

func clone(path string) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, fmt.Errorf("clone mount: %w", err)
	}
	return tree, nil
}

// staged is a read-only mount for kernels before 5.12, which make none read-only that is nowhere. At its target it
// would be writable for a moment, and its copies in containers for ever.
func staged(source string) (_ int, err error) {
	stage, err := os.MkdirTemp("", "berth-worktree-")
	if err != nil {
		return -1, fmt.Errorf("make stage: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(stage)) }()
	if err := unix.Mount(source, stage, "", unix.MS_BIND, ""); err != nil {
		return -1, fmt.Errorf("stage mount: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(stage, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)) }()
	if err := unix.Mount("", stage, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return -1, fmt.Errorf("make mount read-only: %w", err)
	}
	return clone(stage)
}

// boundElsewhere tells whether a directory is bound anywhere below the root.
func (r *Root) boundElsewhere(source where) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(r.path))
	if err != nil {
		return false, fmt.Errorf("find mounts: %w", err)
	}
	for _, m := range mounts {
		fd, err := openReal(m.Mountpoint)
		if err != nil {
			continue // moved on, or covered
		}
		at, err := place(fd)
		_ = unix.Close(fd)
		if err == nil && at.root && at.dev == source.dev && at.ino == source.ino {
			return true, nil
		}
	}
	return false, nil
}
