// Package layer handles the directories that overlayfs puts on top of each other: it mounts them, flattens a stack
// of them into one, and copies what belongs to a layer as a whole.
//
// It works on directories alone and knows neither snapshots nor caches.
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

// Overlay is a stack of layers and the directories that take the writes. All are read and written by root alone,
// from outside of any mount.
type Overlay struct {
	Lower       []string // from the uppermost down; empty for none
	Upper, Work string
}

// FromMounts reads the overlay of a snapshot. That of one without a parent is a bare directory, whose work directory
// lies beside it.
func FromMounts(mounts []mount.Mount, workBeside func(upper string) string) (Overlay, error) {
	if len(mounts) != 1 {
		return Overlay{}, fmt.Errorf("snapshot has %d mounts, expected one: %w", len(mounts), errdefs.ErrNotImplemented)
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		return Overlay{Upper: m.Source, Work: workBeside(m.Source)}, nil
	case "overlay":
	default:
		return Overlay{}, fmt.Errorf("snapshot is mounted as %s, expected overlay: %w", m.Type, errdefs.ErrNotImplemented)
	}
	var o Overlay
	for _, option := range m.Options {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "lowerdir":
			o.Lower = strings.Split(value, ":")
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		}
	}
	return o, nil
}

// Mount mounts the overlay. empty is an empty directory, the lower layer of an overlay without one: so a first layer
// is written by the rules of all others, and can hold no forged whiteouts.
//
// Renamed directories are copied and files are copied up whole, so that each layer can be read without the kernel.
// Nothing is made to reach the disk, by fsync inside or by the unmount, which would wait for all that the node has yet
// to write: whoever keeps the upper layer sees to that.
func (o Overlay) Mount(target, empty string) error {
	lower := o.Lower
	if len(lower) == 0 {
		lower = []string{empty}
	}
	// Left by the last mount; the kernel takes it for a crash since.
	if err := os.RemoveAll(filepath.Join(o.Work, "work", "incompat")); err != nil {
		return fmt.Errorf("clear work directory: %w", err)
	}
	options := []string{
		"index=off", "redirect_dir=nofollow", "metacopy=off", "volatile",
		"workdir=" + o.Work, "upperdir=" + o.Upper, "lowerdir=" + strings.Join(lower, ":"),
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: options}
	if err := m.Mount(target); err != nil {
		return fmt.Errorf("mount %d layers: %w", len(lower), err)
	}
	return nil
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
