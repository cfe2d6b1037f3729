package buildkit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// checkVisible makes sure that containerd sees what is mounted below dir. Where berthd has a mount namespace of its
// own and no propagation, jobs would find empty directories in place of their caches, and no error.
func checkVisible(ctx context.Context, address, dir string) (err error) {
	c, err := containerd.New(address)
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer c.Close()
	server, err := c.IntrospectionService().Server(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for its process: %w", err)
	}
	if same(fmt.Sprintf("/proc/%d/ns/mnt", server.Pid), "/proc/thread-self/ns/mnt") {
		return nil
	}
	probe, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer os.Remove(probe)
	if err := unix.Mount("berth", probe, "tmpfs", 0, "size=4k"); err != nil {
		return fmt.Errorf("mount in cache directory: %w", err)
	}
	defer func() { _ = unix.Unmount(probe, unix.MNT_DETACH) }()
	if !same(filepath.Join(fmt.Sprintf("/proc/%d/root", server.Pid), probe), probe) {
		return fmt.Errorf("containerd does not see mounts below %s: run berthd in containerd's mount namespace, or make the directory a shared mount of both: %w",
			dir, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// same tells whether two names are the same file. What cannot be seen is not.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
