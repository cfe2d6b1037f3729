// Package tree measures and deletes what jobs have made on the node's disk, however it is made. It follows neither
// links nor mounts, and has one directory open at a time, however deep they lie. What a path names is not its to say:
// that is package worktree's.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// errMoved ends a walk in a tree that somebody moves directories about in.
var errMoved = fmt.Errorf("a directory was moved meanwhile: %w", errdefs.ErrAborted)

// visitor is told what a walk comes by. Names are those in the open directory.
type visitor struct {
	// entry is called for all, a directory before what is in it. The top itself has no name.
	entry func(dir *os.File, name string, st *unix.Statx_t) error
	// leave, if any, is called for a directory below the top after what is in it.
	leave func(dir *os.File, name string) error
}

// node tells files apart.
type node struct {
	major, minor uint32
	inode        uint64
}

func nodeOf(st *unix.Statx_t) node { return node{st.Dev_major, st.Dev_minor, st.Ino} }

// level is a directory on the way from the top.
type level struct {
	self    node
	name    string   // of the directory below that the walk is in
	subdirs []string // still to be seen
}

func walk(ctx context.Context, top string, v visitor) error {
	at, err := os.OpenFile(top, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = at.Close() }()
	st, err := stat(at, "")
	if err != nil {
		return err
	}
	if err := v.entry(at, "", st); err != nil {
		return err
	}
	l, err := v.read(ctx, at)
	if err != nil {
		return err
	}
	var above []level
	for {
		if last := len(l.subdirs) - 1; last >= 0 {
			l.name, l.subdirs = l.subdirs[last], l.subdirs[:last]
			down, err := open(at, l.name)
			if gone(err) || errors.Is(err, unix.EXDEV) {
				continue
			}
			if err != nil {
				return err
			}
			above = append(above, l)
			_ = at.Close()
			at = down
			if l, err = v.read(ctx, at); err != nil {
				return err
			}
			continue
		}
		last := len(above) - 1
		if last < 0 {
			return nil
		}
		l, above = above[last], above[:last]
		up, err := open(at, "..")
		if err != nil {
			return err
		}
		_ = at.Close()
		at = up
		if st, err = stat(at, ""); err != nil {
			return err
		}
		if nodeOf(st) != l.self {
			return errMoved
		}
		if v.leave != nil {
			if err := v.leave(at, l.name); err != nil {
				return err
			}
		}
	}
}

// batch is how many names are read at once.
const batch = 1024

// read visits what is in a directory.
func (v visitor) read(ctx context.Context, dir *os.File) (l level, err error) {
	st, err := stat(dir, "")
	if err != nil {
		return l, err
	}
	l.self = nodeOf(st)
	for {
		if ctx.Err() != nil {
			return l, context.Cause(ctx)
		}
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) || gone(err) {
			return l, nil
		}
		if err != nil {
			return l, err
		}
		for _, name := range names {
			st, err := stat(dir, name)
			if gone(err) {
				continue
			}
			if err != nil {
				return l, err
			}
			if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
				continue
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				l.subdirs = append(l.subdirs, name)
			}
			if err := v.entry(dir, name, st); err != nil {
				return l, err
			}
		}
	}
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func stat(dir *os.File, name string) (*unix.Statx_t, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	st := new(unix.Statx_t)
	if err := unix.Statx(int(dir.Fd()), name, flags, unix.STATX_BASIC_STATS, st); err != nil {
		return nil, &os.PathError{Op: "statx", Path: name, Err: err}
	}
	return st, nil
}

// open opens a directory in another, or the one above it.
func open(dir *os.File, name string) (*os.File, error) {
	fd, err := openat(dir, name, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openat opens what is on the same mount.
func openat(dir *os.File, name string, flags uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "openat2", Path: name, Err: err}
		}
		return fd, nil
	}
}
