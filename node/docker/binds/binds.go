// Package binds gives docker containers of a job the files that they name by
// the paths of the job's build container: `-v $CI_PROJECT_DIR:/src`.
//
// The path is resolved in the container's own mount namespace, where neither
// symlinks nor .. lead out of it, and what it leads to is pinned at once by a
// mount of its own below berthd's state. dockerd gets the path of that mount:
// whatever the job does to its files later on, it changes nothing of what is
// bound. It does not decide what a job may bind beyond that: all it can reach
// is the job's.
package binds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Stage is where the pinned mounts are.
type Stage struct{ dir string }

// Open makes the stage below a directory of berthd's own.
func Open(dir string) (*Stage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make stage of binds: %w", err)
	}
	// Mounts made here are to appear nowhere else.
	if mounted, err := mountinfo.Mounted(dir); err != nil {
		return nil, fmt.Errorf("make stage of binds: %w", err)
	} else if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("make stage of binds: %w", err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make stage of binds: %w", err)
	}
	return &Stage{dir: dir}, nil
}

// Close removes the stage where no job has anything on it.
func (s *Stage) Close() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) > 0 {
		return err
	}
	if err := unix.Unmount(s.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove stage of binds: %w", err)
	}
	return os.Remove(s.dir)
}

// maxBinds is how many a job may have: the kernel bounds mounts for all.
const maxBinds = 1000

// Bind is a pinned mount.
type Bind struct {
	// Path of the mount on the node.
	Path string
	// ReadOnly tells that the job can only read it.
	ReadOnly bool
}

// Request asks for a bind.
type Request struct {
	Job string
	// PID of a process in the container whose paths count, and a cgroup that
	// it must be in: the pid may be another's by now.
	PID    int
	Cgroup string
	// Path in that container, absolute.
	Path string
	// Create makes a directory where there is nothing.
	Create bool
}

// Pin mounts what a path leads to.
func (s *Stage) Pin(_ context.Context, r Request) (Bind, error) {
	if !path.IsAbs(r.Path) || strings.ContainsRune(r.Path, 0) {
		return Bind{}, fmt.Errorf("bind source %q: expected an absolute path: %w", r.Path, errdefs.ErrInvalidArgument)
	}
	dir := filepath.Join(s.dir, r.Job)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return Bind{}, fmt.Errorf("pin bind source: %w", err)
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) >= maxBinds {
		return Bind{}, fmt.Errorf("bind source %q: the job's containers have %d already, remove some: %w", r.Path, len(there), errors.Join(err, errdefs.ErrResourceExhausted))
	}
	tree, err := take(r)
	if err != nil {
		return Bind{}, fmt.Errorf("bind source %q: %w", r.Path, err)
	}
	defer tree.Close()
	target, err := s.place(dir, tree.directory)
	if err != nil {
		return Bind{}, fmt.Errorf("pin bind source: %w", err)
	}
	if err := unix.MoveMount(tree.fd(), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return Bind{}, fmt.Errorf("pin bind source: %w", errors.Join(err, os.Remove(target)))
	}
	return Bind{Path: target, ReadOnly: tree.readOnly}, nil
}

// place makes what a mount goes on: a directory or a file.
func (s *Stage) place(dir string, directory bool) (string, error) {
	for n := 0; ; n++ {
		target := filepath.Join(dir, strconv.Itoa(n))
		var err error
		if directory {
			err = os.Mkdir(target, 0o700)
		} else {
			var f *os.File
			if f, err = os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
				err = f.Close()
			}
		}
		if !errors.Is(err, os.ErrExist) {
			return target, err
		}
	}
}

// Unpin removes a mount that nothing needs any more; containers that have it
// keep it.
func (s *Stage) Unpin(target string) error {
	if filepath.Dir(filepath.Dir(target)) != s.dir {
		return fmt.Errorf("unpin %s: it is not on the stage: %w", target, errdefs.ErrInvalidArgument)
	}
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin %s: %w", target, err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin %s: %w", target, err)
	}
	return nil
}

// Release removes a job's mounts. None is no error.
func (s *Stage) Release(job string) error {
	dir := filepath.Join(s.dir, job)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release binds of job %s: %w", job, err)
	}
	for _, e := range entries {
		target := filepath.Join(dir, e.Name())
		for { // one may have been mounted on another
			err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EINVAL) {
				break
			}
			if err != nil {
				return fmt.Errorf("release binds of job %s: unmount %s: %w", job, target, err)
			}
		}
		// Not with what is below: should a mount be left, that is the job's.
		if err := os.Remove(target); err != nil {
			return fmt.Errorf("release binds of job %s: %w", job, err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("release binds of job %s: %w", job, err)
	}
	return nil
}

// Jobs lists the jobs that have binds.
func (s *Stage) Jobs() (jobs []string, err error) {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		jobs = append(jobs, e.Name())
	}
	return jobs, err
}

// tree is a detached mount.
type tree struct {
	file      *os.File
	directory bool
	readOnly  bool
}

func (t tree) fd() int { return int(t.file.Fd()) }

// Close gives the mount up unless it has been moved to its place.
func (t tree) Close() { t.file.Close() }

// take clones what a path leads to, in the mount namespace of the container.
// Only there may it be cloned.
func take(r Request) (tree, error) {
	type result struct {
		tree tree
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is in another namespace then, and ends with the goroutine.
		runtime.LockOSThread()
		t, err := takeInside(r)
		done <- result{t, err}
	}()
	got := <-done
	return got.tree, got.err
}

func takeInside(r Request) (tree, error) {
	process, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return tree{}, gone(err)
	}
	defer unix.Close(process)
	pid := filepath.Join("/proc", strconv.Itoa(r.PID))
	ns, err := os.Open(filepath.Join(pid, "ns", "mnt"))
	if err != nil {
		return tree{}, gone(err)
	}
	defer ns.Close()
	// Opened before the change of namespace: it is the container's by itself.
	root, err := unix.Open(filepath.Join(pid, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, gone(err)
	}
	defer unix.Close(root)
	mounts, err := os.Open(filepath.Join(pid, "mountinfo"))
	if err != nil {
		return tree{}, gone(err)
	}
	defer mounts.Close()
	if err := member(pid, r.Cgroup); err != nil {
		return tree{}, gone(err)
	}
	// Since it lives, all that was opened is its own.
	if err := unix.PidfdSendSignal(process, 0, nil, 0); err != nil {
		return tree{}, gone(err)
	}
	// The node's view of this thread, which the container's /proc has not.
	self, err := unix.Open("/proc/thread-self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, fmt.Errorf("find own descriptors: %w", err)
	}
	defer unix.Close(self)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return tree{}, fmt.Errorf("leave the shared root: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return tree{}, fmt.Errorf("enter the container's mounts: %w", err)
	}
	fd, err := open(root, r.Path, r.Create)
	if err != nil {
		return tree{}, err
	}
	defer unix.Close(fd)
	return clone(fd, pathOf(fd, self), mounts)
}

// member makes sure that a process is in a cgroup.
func member(pid, cgroup string) error {
	text, err := os.ReadFile(filepath.Join(pid, "cgroup"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		// hierarchy:controllers:path
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && strings.HasPrefix(parts[2], cgroup+"/") {
			return nil
		}
	}
	return fmt.Errorf("process %s is not of cgroup %s", filepath.Base(pid), cgroup)
}

func gone(err error) error {
	return fmt.Errorf("the job's container does not run: %w: %w", err, errdefs.ErrFailedPrecondition)
}

// ordinary are the file systems that hold a job's files. Those of the kernel's
// own, such as proc, show more where they are mounted a second time.
var ordinary = map[int64]bool{
	unix.OVERLAYFS_SUPER_MAGIC: true, unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true,
	unix.BTRFS_SUPER_MAGIC: true, unix.F2FS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true,
	unix.NFS_SUPER_MAGIC: true, unix.FUSE_SUPER_MAGIC: true, 0x2fc12fc1: true, // ZFS
}

// clone makes a mount of what fd refers to, with what is mounted below unless
// there is something else than files among it.
func clone(fd int, at string, mounts *os.File) (tree, error) {
	for _, kernels := range []string{"/proc", "/sys", "/dev"} {
		if (at == kernels || strings.HasPrefix(at, kernels+"/")) && !strings.HasPrefix(at, "/dev/shm") {
			return tree{}, fmt.Errorf("it is the kernel's, and not shared: %w", errdefs.ErrPermissionDenied)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return tree{}, err
	}
	if !ordinary[fs.Type] {
		return tree{}, fmt.Errorf("it is on a file system of the kernel's own (type %#x), which is not shared: %w", fs.Type, errdefs.ErrPermissionDenied)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return tree{}, err
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFSOCK, unix.S_IFIFO:
	default:
		return tree{}, fmt.Errorf("it is neither a directory nor a file: %w", errdefs.ErrPermissionDenied)
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	whole, err := onlyFiles(at, mounts)
	if err != nil {
		return tree{}, err
	}
	if whole {
		flags |= unix.AT_RECURSIVE
	}
	cloned, err := unix.OpenTree(fd, "", flags)
	if err != nil {
		return tree{}, fmt.Errorf("pin it: %w", err)
	}
	return tree{
		file:      os.NewFile(uintptr(cloned), "tree"),
		directory: stat.Mode&unix.S_IFMT == unix.S_IFDIR,
		readOnly:  fs.Flags&unix.ST_RDONLY != 0,
	}, nil
}

// onlyFiles tells whether nothing but file systems with files is mounted below.
func onlyFiles(at string, mounts *os.File) (bool, error) {
	below, err := mountinfo.GetMountsFromReader(mounts, mountinfo.PrefixFilter(at))
	if err != nil {
		return false, fmt.Errorf("find mounts below it: %w", err)
	}
	for _, m := range below {
		switch m.FSType {
		case "overlay", "ext4", "ext3", "ext2", "xfs", "btrfs", "f2fs", "zfs", "nfs", "nfs4", "tmpfs":
		default:
			if m.Mountpoint != at {
				return false, nil
			}
		}
	}
	return true, nil
}

// pathOf is the path of what fd refers to, in the container; the root where
// it has none. It decides about nothing but what else is mounted there.
func pathOf(fd, self int) string {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(self, strconv.Itoa(fd), b)
	if err != nil || !path.IsAbs(string(b[:n])) {
		return "/"
	}
	return string(b[:n])
}

// open resolves a path in the container and, if asked to, makes directories
// where it ends.
func open(root int, name string, create bool) (int, error) {
	fd, err := resolve(root, name)
	if !errors.Is(err, unix.ENOENT) || !create {
		return fd, found(err)
	}
	parent, base := path.Split(path.Clean(name))
	if base == "" {
		return -1, found(err)
	}
	dir, err := open(root, path.Clean(parent), true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("make directory: %w", err)
	}
	fd, err = unix.Openat2(dir, base, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	return fd, found(err)
}

func resolve(root int, name string) (int, error) {
	for {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) { // something was renamed meanwhile
			return fd, err
		}
	}
}

func found(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("it does not exist in the job's build container: %w", errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return fmt.Errorf("it leads nowhere: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
