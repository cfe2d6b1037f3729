package stages

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	customapi "gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
)

// findRunner finds the gitlab-runner process that made this call: the
// nearest ancestor that does not have the call's environment. Programs
// between, such as a wrapper script or sudo, inherit or carry it.
func findRunner(payloadFile string) (api.Process, error) {
	mark := []byte(customapi.JobResponseFileVariable + "=" + payloadFile)
	pid := os.Getppid()
	for pid > 1 {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return api.Process{}, fmt.Errorf("find gitlab-runner's process: %w", err)
		}
		if !hasEntry(environ, mark) {
			break
		}
		if pid, err = parentOf(pid); err != nil {
			return api.Process{}, fmt.Errorf("find gitlab-runner's process: %w", err)
		}
	}
	return api.FindProcess(pid)
}

// abandoned tells whether nobody reads what the call prints any more: its
// runner has died, and the process that was found is who took its children.
func abandoned(stdout *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(stdout.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
}

func hasEntry(environ, entry []byte) bool {
	for e := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(e, entry) {
			return true
		}
	}
	return false
}

func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("its status names no parent")
}

// runnerBinary gives a path of the runner's own binary that may be mounted in
// a helper container. An upgrade of the package replaces the file under a
// running runner, so a copy is kept, one for each version in use.
func runnerBinary(runner api.Process, dir string) (string, error) {
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", runner.PID))
	if err != nil {
		return "", fmt.Errorf("open gitlab-runner's binary: %w", err)
	}
	defer exe.Close()
	info, err := exe.Stat()
	if err != nil {
		return "", fmt.Errorf("open gitlab-runner's binary: %w", err)
	}
	inode := info.Sys().(*syscall.Stat_t)
	kept := filepath.Join(dir, fmt.Sprintf("%x-%x-%x-%x", inode.Dev, inode.Ino, info.Size(), info.ModTime().UnixNano()))
	now := time.Now()
	if os.Chtimes(kept, now, now) == nil {
		return kept, nil
	}
	tmp, err := os.CreateTemp(dir, ".copy-*")
	if err != nil {
		return "", fmt.Errorf("copy gitlab-runner's binary: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, exe)
	err = errors.Join(err, tmp.Chmod(0o755), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), kept)
	}
	if err != nil {
		return "", fmt.Errorf("copy gitlab-runner's binary: %w", err)
	}
	return kept, forgetRunners(dir, now.Add(-forgetAfter))
}

// forgetAfter is how long the copy of a runner that makes no calls is kept.
const forgetAfter = 7 * 24 * time.Hour

// forgetRunners removes copies that were last used before a time. Containers
// that have one mounted keep it.
func forgetRunners(dir string, before time.Time) error {
	copies, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for old copies of gitlab-runner: %w", err)
	}
	for _, c := range copies {
		info, err := c.Info()
		if err == nil && info.ModTime().Before(before) {
			err = os.Remove(filepath.Join(dir, c.Name()))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an old copy of gitlab-runner: %w", err)
		}
	}
	return nil
}
