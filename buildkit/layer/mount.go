package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// longest is the longest value that a file system context takes.
const longest = 255

// Mount mounts the overlay. empty is an empty directory, the lower layer of an overlay without one: so a first layer
// is written by the rules of all others, and can hold no forged whiteouts.
//
// Renamed directories are copied and files are copied up whole, so that each layer can be read without the kernel.
// Nothing is made to reach the disk, by fsync inside or by the unmount, which would wait for all that the node has yet
// to write: whoever keeps the upper layer sees to that.
func (o Overlay) Mount(target, empty string) error {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open mount point %s: %w", target, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return o.MountOn(fd, empty)
}

// MountOn mounts the overlay as Mount does, on an open directory: whatever becomes of its path meanwhile.
func (o Overlay) MountOn(dir int, empty string) error {
	lower := o.Lower
	if len(lower) == 0 {
		lower = []string{empty}
	}
	// Left by the last mount; the kernel takes it for a crash since.
	if err := os.RemoveAll(filepath.Join(o.Work, "work", "incompat")); err != nil {
		return fmt.Errorf("clear work directory: %w", err)
	}
	err := o.mountNew(dir, lower)
	if errdefs.IsNotImplemented(err) {
		err = o.mountOld(dir, lower)
	}
	if err != nil {
		return fmt.Errorf("mount %d layers: %w", len(lower), err)
	}
	return nil
}

// settings are the options of all our overlays.
var settings = []string{"index=off", "redirect_dir=nofollow", "metacopy=off", "volatile"}

// mountNew mounts by a file system context, which takes any number of layers. Kernels from 6.8 on can do it;
// errdefs.ErrNotImplemented from others.
func (o Overlay) mountNew(dir int, lower []string) error {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open file system context: %w: %w", err, errdefs.ErrNotImplemented)
	}
	defer func() { _ = unix.Close(ctx) }()
	set := func(key, value string) error {
		if len(value) > longest {
			return fmt.Errorf("set %s=%s: %w", key, value, errdefs.ErrNotImplemented)
		}
		if err := unix.FsconfigSetString(ctx, key, value); err != nil {
			return fmt.Errorf("set %s=%s: %w", key, value, err)
		}
		return nil
	}
	for _, layer := range lower {
		if err := set("lowerdir+", layer); errors.Is(err, unix.EINVAL) {
			return errors.Join(err, errdefs.ErrNotImplemented)
		} else if err != nil {
			return err
		}
	}
	for _, option := range append([]string{"upperdir=" + o.Upper, "workdir=" + o.Work, "source=overlay"}, settings...) {
		key, value, ok := strings.Cut(option, "=")
		if !ok {
			err = unix.FsconfigSetFlag(ctx, key)
		} else {
			err = set(key, value)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(ctx); errors.Is(err, unix.EINVAL) {
		// Kernels whose overlayfs has no contexts of its own look at the options only now.
		return fmt.Errorf("create overlay: %w%s: %w", err, says(ctx), errdefs.ErrNotImplemented)
	} else if err != nil {
		return fmt.Errorf("create overlay: %w%s", err, says(ctx))
	}
	mnt, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make mount: %w", err)
	}
	defer func() { _ = unix.Close(mnt) }()
	if err := unix.MoveMount(mnt, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("place mount: %w", err)
	}
	return nil
}

// says is what the kernel has to say about a failure, if anything.
func says(ctx int) string {
	buf := make([]byte, 1024)
	n, err := unix.Read(ctx, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

// mountOld mounts by mount(2), whose options go on one page; containerd shortens the paths.
func (o Overlay) mountOld(dir int, lower []string) error {
	options := append([]string{
		"workdir=" + o.Work, "upperdir=" + o.Upper, "lowerdir=" + strings.Join(lower, ":"),
	}, settings...)
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: options}
	return m.Mount(fmt.Sprintf("/proc/self/fd/%d", dir))
}

// Alive tells whether an overlay with this upper directory is mounted, in whatever mount namespace. Somebody may
// write to it then.
func Alive(upper string) (bool, error) {
	// In memory where it can be: the disk may be full.
	scratch, err := os.MkdirTemp("/run", "berth-layer-")
	if err != nil {
		scratch, err = os.MkdirTemp("", "berth-layer-")
	}
	if err != nil {
		return false, fmt.Errorf("look for mounts of %s: %w", upper, err)
	}
	defer func() { _ = os.Remove(scratch) }()
	// With an index the kernel insists on being the only one; and refuses this work directory, but only after.
	escaped := strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(upper)
	data := "index=on,lowerdir=" + scratch + ",upperdir=" + escaped + ",workdir=" + escaped
	err = unix.Mount("overlay", scratch, "overlay", 0, data)
	switch {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case errors.Is(err, unix.EINVAL):
		return false, nil
	case err == nil:
		err = errors.Join(errors.New("the kernel mounted a layer upon itself"), unix.Unmount(scratch, unix.MNT_DETACH))
	}
	return false, fmt.Errorf("look for mounts of %s: %w", upper, err)
}

// Unmount undoes Mount and removes the directory that it was mounted on. It is an error if something still uses the
// mount in this mount namespace; the copies that containers have are theirs.
func Unmount(target string) error {
	mounted, err := Mounted(target)
	if err != nil {
		return err
	}
	if mounted {
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("unmount %s: it is in use: %w", target, errdefs.ErrFailedPrecondition)
			}
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove mount point: %w", err)
	}
	return nil
}

// Mounted tells whether something is mounted at a path, which need not exist.
func Mounted(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("look for mount: %w", err)
	}
	return mounted, nil
}
