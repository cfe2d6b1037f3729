package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// rounds is how often Remove looks for what a file system did not name while others were deleted.
const rounds = 8

// Remove deletes a directory, or a file, that nobody changes any more, immutable as it may be. What is mounted in it
// is left, and with it the directory: an error.
func Remove(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return os.Remove(path)
	}
	for range rounds {
		if err = walk(ctx, path, visitor{entry: unlink, leave: rmdir}); err == nil {
			err = unix.Rmdir(path)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
	}
	return fmt.Errorf("remove %s: %w", path, err)
}

func unlink(dir *os.File, name string, st *unix.Statx_t) error {
	if err := loosen(dir, name, st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return err
	}
	return unlinkat(dir, name, 0)
}

// rmdir leaves what is not empty to the next round.
func rmdir(dir *os.File, name string) error {
	if err := unlinkat(dir, name, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func unlinkat(dir *os.File, name string, flags int) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, flags); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlinkat", Path: name, Err: err}
	}
	return nil
}

// Loosen has a directory, which may be immutable, be changed and moved again.
func Loosen(dir string) error {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := stat(f, "")
	if err != nil {
		return err
	}
	return loosen(f, "", st)
}

const (
	immutableAttributes = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND
	immutableFlags      = 0x10 | 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL
)

// loosen takes the flags from a file, or from the directory itself, that keep even root from deleting it.
func loosen(dir *os.File, name string, st *unix.Statx_t) error {
	if kind := st.Mode & unix.S_IFMT; st.Attributes&immutableAttributes == 0 || kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return nil
	}
	fd := int(dir.Fd())
	if name != "" {
		var err error
		if fd, err = openat(dir, name, 0); err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
	}
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^immutableFlags)
	}
	if err != nil {
		return &os.PathError{Op: "make mutable", Path: name, Err: err}
	}
	return nil
}
