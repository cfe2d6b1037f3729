package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// storage looks at the file systems of root and state, which need not exist
// yet.
func (n *node) storage(context.Context) []Check {
	var checks []Check
	root, state := existing(n.config.Root), existing(n.config.State)
	checks = append(checks, checkSpace("disk of root", root, 20<<30, 2<<30), checkSpace("disk of state", state, 64<<20, 8<<20))
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err == nil {
		checks = append(checks, checkType(root, s.Type))
	}
	if os.Geteuid() != 0 {
		return checks
	}
	if err := tryOverlay(root); err != nil {
		return append(checks, fail("overlayfs", "Put root on ext4, or on xfs made with ftype=1, and load the module overlay.", "does not work in %s: %v", root, err))
	}
	return append(checks, ok("overlayfs", "works in %s", root))
}

// checkSpace compares what is free with what a node should have, and with
// what it can not do without.
func checkSpace(name, dir string, should, must uint64) Check {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fail(name, "Mend the file system.", "%s: %v", dir, err)
	}
	free := s.Bavail * uint64(s.Bsize)
	detail := fmt.Sprintf("%s free in %s", units.BytesSize(float64(free)), dir)
	inodes := s.Files == 0 || s.Ffree > s.Files/20 // btrfs has no fixed number
	if !inodes {
		detail += fmt.Sprintf(", %d of %d inodes", s.Ffree, s.Files)
	}
	const remedy = "Have less kept, by [images] and [cache] of berthd's configuration, or at once by berth images prune and berth cache prune; or give it more."
	switch {
	case free < must || s.Files != 0 && s.Ffree == 0:
		return fail(name, remedy, "%s", detail)
	case free < should || !inodes:
		return warn(name, remedy, "%s", detail)
	}
	return ok(name, "%s", detail)
}

// checkType knows file systems by the numbers of statfs(2).
func checkType(dir string, number int64) Check {
	const name = "file system of root"
	switch number {
	case unix.EXT4_SUPER_MAGIC:
		return ok(name, "ext4")
	case unix.XFS_SUPER_MAGIC:
		return ok(name, "xfs")
	case unix.BTRFS_SUPER_MAGIC:
		return ok(name, "btrfs")
	case unix.TMPFS_MAGIC:
		return warn(name, "Put root on a disk.", "%s is in memory: caches and images are gone after a reboot", dir)
	case unix.NFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return fail(name, "Put root on a local disk with ext4 or xfs.", "%s is remote or served by a program", dir)
	case unix.OVERLAYFS_SUPER_MAGIC:
		return fail(name, "Put root on a volume with ext4 or xfs; in a container, mount one there.", "%s is on overlayfs itself", dir)
	}
	return warn(name, "ext4 and xfs are known to work.", "%s has a type that Berth was not tried with: %#x", dir, number)
}

// tryOverlay stacks directories below dir and does what layers of images
// need. The mount is in a namespace that ends with the thread.
func tryOverlay(dir string) (err error) {
	scratch, err := os.MkdirTemp(dir, ".berth-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: nobody else may get this thread
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("unshare mounts: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			return overlay(scratch)
		}()
	}()
	return <-done
}

func overlay(scratch string) (err error) {
	at := func(elem ...string) string { return filepath.Join(append([]string{scratch}, elem...)...) }
	for _, dir := range []string{"lower/dir", "upper", "work", "merged"} {
		if err := os.MkdirAll(at(dir), 0o755); err != nil {
			return err
		}
	}
	for _, file := range []string{"file", "dir/file"} {
		if err := os.WriteFile(at("lower", file), []byte("lower"), 0o644); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))
	if err := unix.Mount("overlay", at("merged"), "overlay", 0, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(at("merged"), unix.MNT_DETACH)) }()

	// A file is copied up, and removed: that takes a whiteout and d_type.
	if err := os.Chmod(at("merged/file"), 0o600); err != nil {
		return fmt.Errorf("copy up: %w", err)
	}
	if err := os.Remove(at("merged/file")); err != nil {
		return fmt.Errorf("whiteout: %w", err)
	}
	// A directory is replaced: that takes an extended attribute, trusted.*.
	if err := os.RemoveAll(at("merged/dir")); err != nil {
		return fmt.Errorf("remove directory: %w", err)
	}
	if err := os.Mkdir(at("merged/dir"), 0o755); err != nil {
		return fmt.Errorf("replace directory: %w", err)
	}
	switch entries, err := os.ReadDir(at("merged")); {
	case err != nil:
		return err
	case len(entries) != 1 || !entries[0].IsDir():
		return errors.New("removed files show up again: the file system does not tell types of entries (d_type)")
	}
	switch entries, err := os.ReadDir(at("merged/dir")); {
	case err != nil:
		return err
	case len(entries) != 0:
		return errors.New("a replaced directory shows what it held before: the file system has no trusted extended attributes")
	}
	return nil
}
