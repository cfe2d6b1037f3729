package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Copy makes a copy of anything but a directory, with owner, mode, attributes and times; holes stay holes.
func (e *Entry) Copy(target string) error {
	var err error
	switch st := &e.Stat; st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = e.copyData(target)
	case unix.S_IFLNK:
		var to string
		if to, err = os.Readlink(e.Path()); err == nil {
			err = os.Symlink(to, target)
		}
	default:
		err = unix.Mknod(target, st.Mode, int(st.Rdev))
	}
	if err == nil {
		err = copyAttributes(target, e.Path(), false)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", e.Name, err)
	}
	return nil
}

func (e *Entry) copyData(target string) error {
	// What was a file may be a pipe by now.
	fd, err := unix.Openat(int(e.dir.Fd()), e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), e.Name)
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is a file no more: %w", unix.ESTALE)
	}
	dst, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = copyExtents(dst, src, info.Size())
	return errors.Join(err, dst.Close())
}

// copyExtents copies what is not hole.
func copyExtents(dst, src *os.File, size int64) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		hole = min(hole, size)
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		// By copy_file_range, which shares blocks where the file system can.
		if _, err := io.CopyN(dst, src, hole-data); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		at = hole
	}
	return nil
}

// CopyOptions say what is not copied as it is.
type CopyOptions struct {
	// Owner says who is to own the copy of what somebody owns; nil for the same.
	Owner func(uid, gid int) (int, int)
	// Marks copies whiteouts and opaque directories of a view of one layer.
	Marks bool
}

// Copy fills the empty directory dst with a copy of the view, as Flatten does by hardlinks. Files with several names
// keep them. What goes meanwhile is left out.
func (v *View) Copy(ctx context.Context, dst string, o CopyOptions) error {
	c := copier{CopyOptions: o, copies: map[inode]string{}}
	return c.dir(ctx, dst, v)
}

type inode struct{ dev, ino uint64 }

// copier copies a tree.
type copier struct {
	CopyOptions
	copies map[inode]string // of files with several names
}

func (c *copier) dir(ctx context.Context, dst string, v *View) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(dst, e.Name)
		if e.IsDir() {
			err = c.sub(ctx, target, v, e.Name)
		} else {
			err = c.file(target, &e)
		}
		if err != nil && !e.gone() {
			return err
		}
	}
	if c.Marks {
		if err := copyMarks(dst, v); err != nil {
			return err
		}
	}
	if err := copyAttributes(dst, v.Path(), false); err != nil {
		return err
	}
	return c.own(dst)
}

func copyMarks(dst string, v *View) error {
	marked, err := v.Marked()
	if err != nil {
		return err
	}
	for _, name := range marked {
		if err := MakeWhiteout(filepath.Join(dst, name)); err != nil {
			return err
		}
	}
	if v.Opaque() {
		return SetOpaque(dst, true)
	}
	return nil
}

// gone tells whether there is no such entry any more.
func (e *Entry) gone() bool {
	_, err := os.Lstat(e.Path())
	return errors.Is(err, os.ErrNotExist)
}

func (c *copier) sub(ctx context.Context, target string, v *View, name string) error {
	sub, err := v.Open(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := os.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return c.dir(ctx, target, sub)
}

func (c *copier) file(target string, e *Entry) error {
	key := inode{e.Stat.Dev, e.Stat.Ino}
	if first, ok := c.copies[key]; ok {
		return link(first, target)
	}
	if err := e.Copy(target); err != nil {
		return err
	}
	if e.Stat.Nlink > 1 {
		c.copies[key] = target
	}
	return c.own(target)
}

// own changes the owner, and keeps the bits that this takes away; file capabilities go.
func (c *copier) own(path string) error {
	if c.Owner == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	uid, gid := c.Owner(int(st.Uid), int(st.Gid))
	if uid == int(st.Uid) && gid == int(st.Gid) {
		return nil
	}
	if err := unix.Lchown(path, uid, gid); err != nil {
		return fmt.Errorf("chown %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod %s: %w", path, err)
	}
	return nil
}
