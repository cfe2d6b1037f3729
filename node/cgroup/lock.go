package cgroup

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/executor"
)

// Lock makes the parent of jobs' cgroups and takes it for this process alone.
// Two that shared one would end each other's jobs as leftovers.
func (t *Tree) Lock(path string) (unlock func() error, err error) {
	if err := t.Create(path, executor.Limits{}); err != nil {
		return nil, err
	}
	dirs := t.dirs(path)
	if len(dirs) == 0 {
		return nil, fmt.Errorf("lock cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	f, err := os.Open(dirs[0])
	if err != nil {
		return nil, fmt.Errorf("lock cgroup %s: %w", path, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another berthd uses it: give this one a limits.cgroup of its own: %w", errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock cgroup %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}
