package layer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// overlayXattr begins the names of overlayfs's own attributes, which mean something in their own layer only.
const overlayXattr = "trusted.overlay."

// CopyRoot gives a new layer's root the owner, mode and attributes of the one below, which overlayfs would hide.
func CopyRoot(dst, src string) error {
	return copyAttributes(dst, src, false)
}

// CopyAttributes makes a directory like another: owner, mode, attributes and times, but for what marks a layer's.
func CopyAttributes(dst, src string) error {
	return copyAttributes(dst, src, false)
}

// copyAttributes makes something like another: owner, mode, attributes and times; overlayfs's own if raw.
func copyAttributes(dst, src string, raw bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return fmt.Errorf("stat %s: %w", src, err)
	}
	if err := unix.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown %s: %w", dst, err)
	}
	// After the owner, whose change may take bits away. Links have no mode.
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
			return fmt.Errorf("chmod %s: %w", dst, err)
		}
	}
	if err := copyXattrs(dst, src, raw); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %s: %w", dst, err)
	}
	return nil
}

func copyXattrs(dst, src string, raw bool) error {
	names, err := listXattrs(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !raw && strings.HasPrefix(name, overlayXattr) {
			continue
		}
		value, err := getXattr(src, name)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(dst, name, value, 0); err != nil {
			return fmt.Errorf("set attribute %s of %s: %w", name, dst, err)
		}
	}
	return nil
}

func listXattrs(path string) ([]string, error) {
	list, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes of %s: %w", path, err)
	}
	return strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00"), nil
}

func getXattr(path, name string) ([]byte, error) {
	value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
	if err != nil {
		return nil, fmt.Errorf("get attribute %s of %s: %w", name, path, err)
	}
	return value, nil
}

// grow calls read with a buffer that is large enough.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := read(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// Opaque tells whether a layer's directory hides those of the layers below.
func Opaque(dir string) (bool, error) {
	value, err := getXattr(dir, overlayXattr+"opaque")
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return string(value) == "y", err
}

// SetOpaque lets a layer's directory hide those of the layers below, or no more.
func SetOpaque(dir string, opaque bool) error {
	if opaque {
		if err := unix.Lsetxattr(dir, overlayXattr+"opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("mark %s opaque: %w", dir, err)
		}
		return nil
	}
	if err := unix.Lremovexattr(dir, overlayXattr+"opaque"); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("take opaque mark from %s: %w", dir, err)
	}
	return nil
}

// MakeWhiteout makes a layer say that there is no such file.
func MakeWhiteout(path string) error {
	if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make whiteout %s: %w", path, err)
	}
	return nil
}

// Whiteout tells whether a layer's file says that there is none.
func Whiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// SameAttributes tells whether two directories have the same owner, mode and attributes, whatever their times.
func SameAttributes(a, b string) (bool, error) {
	one, err := describe(a)
	if err != nil {
		return false, err
	}
	other, err := describe(b)
	return one == other, err
}

// describe is what CopyRoot copies, times aside.
func describe(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", dir, err)
	}
	names, err := listXattrs(dir)
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	text := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
	for _, name := range names {
		if strings.HasPrefix(name, overlayXattr) {
			continue
		}
		value, err := getXattr(dir, name)
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf(" %q=%q", name, value)
	}
	return text, nil
}
