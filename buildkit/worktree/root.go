package worktree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Root is a directory of a job, made by Share, below which mounts come and go: its builds directory, or one with
// directories that its containers have elsewhere. All below is the job's, whose processes may run: they may put links
// in the place of directories and move them about. Nothing outside of the root is ever touched for that.
type Root struct {
	path string
	dir  int
	id   uint64 // of its mount
}

// OpenRoot opens a shared directory.
func OpenRoot(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	r := &Root{path: dir, dir: fd}
	at, err := place(fd)
	if err == nil && !at.root {
		err = fmt.Errorf("it is not shared: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	r.id = at.mount
	return r, nil
}

// Close closes the directory. What is mounted stays.
func (r *Root) Close() { _ = unix.Close(r.dir) }

// where something open lies.
type where struct {
	mount    uint64 // its id
	root     bool   // of the mount
	dev, ino uint64
}

func place(fd int) (where, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID|unix.STATX_INO, &st); err != nil {
		return where{}, fmt.Errorf("find mount: %w", err)
	}
	return where{
		mount: st.Mnt_id,
		root:  st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		dev:   unix.Mkdev(st.Dev_major, st.Dev_minor),
		ino:   st.Ino,
	}, nil
}

// clean checks a path below the root.
func clean(path string) error {
	if !filepath.IsLocal(path) || filepath.Clean(path) != path || path == "." {
		return fmt.Errorf("path %q is not one below a directory: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// open opens a directory below another for reference.
func open(dir int, path string, resolve uint64) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
}

// stable repeats what the kernel could not decide because something was renamed meanwhile, which a job may do without
// end.
func stable(call func() error) error {
	var err error
	for range 100 {
		if err = call(); !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return err
}

// find opens a directory below the root.
func (r *Root) find(path string) (fd int, err error) {
	err = stable(func() error {
		fd, err = open(r.dir, path, 0)
		return err
	})
	if err != nil {
		return -1, explain(path, err)
	}
	return fd, nil
}

// make opens a directory below the root, and makes what is missing of its path.
func (r *Root) make(path string, uid, gid int) (int, error) {
	at, err := unix.FcntlInt(uintptr(r.dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	for name := range strings.SplitSeq(path, "/") {
		next, err := makeOne(at, name, uid, gid)
		_ = unix.Close(at)
		if err != nil {
			return -1, explain(path, err)
		}
		at = next
	}
	return at, nil
}

func makeOne(at int, name string, uid, gid int) (fd int, err error) {
	err = stable(func() error {
		fd, err = open(at, name, 0)
		return err
	})
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(at, name, 0o755); err != nil {
		return -1, err
	}
	// The job may have put another there, but no mount.
	err = stable(func() error {
		fd, err = open(at, name, unix.RESOLVE_NO_XDEV)
		return err
	})
	if err != nil {
		return -1, err
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// explain says what may be wrong with a path that the job decides on.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s: a part of it is a symbolic link, which is not followed: %w", path, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s: a part of it is no directory: %w", path, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%s: it is changed meanwhile: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrNotFound)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// Prepare makes a directory with its parents, unless it is there. What it makes is owned by uid:gid.
func (r *Root) Prepare(path string, uid, gid int) error {
	if err := clean(path); err != nil {
		return err
	}
	fd, err := r.make(path, uid, gid)
	if err != nil {
		return fmt.Errorf("make project directory: %w", err)
	}
	return unix.Close(fd)
}

// spot is where a mount is or goes: a name in an open directory.
type spot struct {
	parent int
	name   string
}

// spot opens the parent of a path; that of the root itself is the host's.
func (r *Root) spot(path string) (spot, error) {
	if path == "." {
		fd, err := unix.Open(filepath.Dir(r.path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return spot{}, fmt.Errorf("open parent of %s: %w", r.path, err)
		}
		return spot{fd, filepath.Base(r.path)}, nil
	}
	fd, err := r.find(filepath.Dir(path))
	return spot{fd, filepath.Base(path)}, err
}

func (s spot) close() { _ = unix.Close(s.parent) }

// on tells what is at the spot, the uppermost mount if there is one.
func (s spot) on() (where, error) {
	var fd int
	err := stable(func() (err error) {
		fd, err = open(s.parent, s.name, 0)
		return err
	})
	if err != nil {
		return where{}, explain(s.name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return place(fd)
}
