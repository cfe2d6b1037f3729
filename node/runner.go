package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
)

// tempDirInterval is how often it is looked whether a job's TempDir is there.
const tempDirInterval = 5 * time.Second

// runner is the gitlab-runner that a job belongs to.
type runner struct {
	api.Process
	// tempDir is its directory for the job, empty if unknown.
	tempDir string
}

// check refuses a runner that has ended, or a directory that it has not.
func (r runner) check() error {
	if !r.Alive() {
		return fmt.Errorf("gitlab-runner process %d has ended: %w", r.PID, errdefs.ErrFailedPrecondition)
	}
	if r.tempDir == "" {
		return nil
	}
	if !filepath.IsAbs(r.tempDir) || filepath.Clean(r.tempDir) != r.tempDir {
		return fmt.Errorf("temp_dir %q: expected an absolute path without . and ..: %w", r.tempDir, errdefs.ErrInvalidArgument)
	}
	if r.tempDirGone() {
		return fmt.Errorf("temp_dir %q: gitlab-runner process %d has no such directory: %w", r.tempDir, r.PID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ended says why the job has no runner any more; nothing while it has.
func (r runner) ended() string {
	switch {
	case !r.Alive():
		return "its gitlab-runner process is gone"
	case r.tempDir != "" && r.tempDirGone():
		return "its gitlab-runner is through with it"
	}
	return ""
}

// tempDirGone looks with the runner's eyes: it may live in a container.
func (r runner) tempDirGone() bool {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", r.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // the process says more about that
	}
	defer func() { _ = unix.Close(root) }()
	dir, err := unix.Openat2(root, r.tempDir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err == nil {
		_ = unix.Close(dir)
	}
	return errors.Is(err, fs.ErrNotExist)
}

// wait returns why the job's runner ended as soon as it does, or nothing when
// ctx ends before.
func (r runner) wait(ctx context.Context) string {
	exited := make(chan struct{})
	if f, err := r.open(); err == nil {
		defer f.Close() // ends the goroutine
		go func() {
			if awaitExit(f) == nil {
				close(exited)
			}
		}()
	}
	tick := time.NewTicker(tempDirInterval)
	defer tick.Stop()
	for {
		if why := r.ended(); why != "" {
			return why
		}
		select {
		case <-ctx.Done():
			return ""
		case <-exited:
		case <-tick.C:
		}
	}
}

// open gives the process as a file that becomes readable when it ends. Where
// the kernel has no such thing, before Linux 5.10, the ticker has to do.
func (r runner) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", r.PID, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// callerTimeout is how long a killed process may take to end.
const callerTimeout = 10 * time.Second

// endCaller ends the process that prepares a job, if it still does.
func endCaller(caller api.Process) error {
	if caller.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(caller.PID, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	if !caller.Alive() { // asked after the opening, so that fd is the caller's
		return nil
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	for deadline := time.Now().Add(callerTimeout); err == nil && caller.Alive(); {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("end process %d, which prepares the job: it still runs %v after SIGKILL", caller.PID, callerTimeout)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d, which prepares the job: %w", caller.PID, err)
	}
	return nil
}

// awaitExit parks until a pidfd becomes readable.
func awaitExit(pidfd *os.File) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
}
