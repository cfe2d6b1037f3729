package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Remove removes a cgroup from all hierarchies with all below it, and kills
// what still runs there. A cgroup that is gone already is no error.
func (t *Tree) Remove(ctx context.Context, path string) error {
	if err := valid(path); err != nil {
		return err
	}
	for {
		err := t.rmdir(path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		if err := t.kill(ctx, path); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("remove cgroup %s: %w: %w", path, context.Cause(ctx), err)
		}
	}
}

// rmdir removes the directories of an empty cgroup, the deepest first. Files
// in them are the kernel's and go along.
func (t *Tree) rmdir(path string) error {
	for _, dir := range t.dirs(path) {
		below, err := subtree(dir)
		if err != nil {
			return err
		}
		for _, d := range slices.Backward(below) {
			if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
				return &fs.PathError{Op: "rmdir", Path: d, Err: err}
			}
		}
	}
	return nil
}

// subtree lists a directory and those below it, parents first.
func subtree(dir string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return ignoreGone(err)
	})
	return dirs, err
}

// kill kills the processes of a cgroup and waits until those it found are
// gone. There may be new ones then: the caller looks again.
func (t *Tree) kill(ctx context.Context, path string) error {
	if t.v2 != "" {
		// One write for all, new ones too, where the kernel has it (5.14).
		err := os.WriteFile(filepath.Join(t.v2, path, "cgroup.kill"), []byte("1"), 0)
		if ignoreGone(err) != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	if err := t.thaw(path); err != nil {
		return err
	}
	found, err := t.processes(path)
	if err != nil {
		return err
	}
	pidfds := make(map[int]int, len(found))
	defer func() {
		for _, fd := range pidfds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range found {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil { // else it is gone
			pidfds[pid] = fd
		}
	}
	// A pid that is listed again after its pidfd was opened has not been given
	// to a stranger in between.
	still, err := t.processes(path)
	if err != nil {
		return err
	}
	var killed []int
	for _, pid := range still {
		fd, ok := pidfds[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
		killed = append(killed, fd)
	}
	return wait(ctx, killed)
}

// settle is how long a cgroup may stay busy after its last process was seen
// to end.
const settle = 10 * time.Millisecond

// wait waits until the processes of all pidfds have ended.
func wait(ctx context.Context, pidfds []int) error {
	if len(pidfds) == 0 {
		// Busy without a process: one is on its way in or out.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(settle):
			return nil
		}
	}
	for i, fd := range pidfds {
		for ended := 0; ended == 0; {
			if ctx.Err() != nil {
				return fmt.Errorf("%d processes do not end: %w", len(pidfds)-i, context.Cause(ctx))
			}
			var err error
			ended, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if err != nil && err != unix.EINTR {
				return fmt.Errorf("wait for processes to end: %w", err)
			}
			ended = max(ended, 0)
		}
	}
	return nil
}

// thaw lets frozen processes run: on v1 they do not die otherwise.
func (t *Tree) thaw(path string) error {
	mount, ok := t.v1["freezer"]
	if !ok {
		return nil
	}
	dirs, err := subtree(filepath.Join(mount, path))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0); ignoreGone(err) != nil {
			return err
		}
	}
	return nil
}

// processes lists the processes in a cgroup and below, in any hierarchy.
func (t *Tree) processes(path string) ([]int, error) {
	var pids []int
	for _, dir := range t.dirs(path) {
		below, err := subtree(dir)
		if err != nil {
			return nil, err
		}
		for _, d := range below {
			b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
			if err != nil {
				if ignoreGone(err) == nil || errors.Is(err, unix.ENODEV) {
					continue
				}
				return nil, err
			}
			for _, field := range strings.Fields(string(b)) {
				// Processes of another pid namespace are listed as 0.
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
