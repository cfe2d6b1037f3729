package worktree

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Share makes a directory a mount of its own from which mounts spread to whoever has bound it as a slave, running
// containers too. Done twice it is done once.
func Share(dir string) error {
	shared, mounted, err := shared(dir)
	if err != nil || shared {
		return err
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("share %s: %w", dir, err)
		}
	}
	// It may be shared with what it was bound from, and would show every mount below it twice.
	err = unix.Mount("", dir, "", unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_SHARED, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("share %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// shared tells of the mount at dir. One that was bound only, by a Share cut short, may be shared already: with the
// mount below.
func shared(dir string) (shared, mounted bool, err error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return false, false, fmt.Errorf("look for mount at %s: %w", dir, err)
	}
	var top *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == dir {
			top = m
		}
	}
	if top == nil {
		return false, false, nil
	}
	for _, m := range mounts {
		if m.ID == top.Parent {
			return group(top) != "" && group(top) != group(m), true, nil
		}
	}
	return group(top) != "", true, nil
}

// Detach undoes Share, and detaches all that is mounted in a directory or anywhere below it, wherever the job may
// have moved it. It is for when no process of the job lives any more: those that use a mount keep it.
func Detach(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("find mounts below %s: %w", dir, err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := detach(m.Mountpoint); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// detach follows no link to a mount. One that went with another is gone already.
func detach(path string) error {
	parent, err := openReal(filepath.Dir(path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(parent) }()
	err = unix.Unmount(inside(parent, filepath.Base(path)), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// inside names something in an open directory for calls that take a path.
func inside(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }

// openReal opens a directory by a path in which no link is.
func openReal(path string) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
}
