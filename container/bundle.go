package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
)

// containerd cleans up after a shim that died with programs that have a time limit and may be killed themselves. What
// they leave nobody removes: a bundle, the container's root that is mounted in it, and runc's state.

// runcStates is where runc keeps the states of containerd's containers, unless it is told otherwise.
const runcStates = "/run/containerd/runc"

// bundles is what shims leave on disk.
type bundles struct {
	dir    string // of this containerd's and namespace's bundles
	states string // runc's
}

// bundlesOf relies on containerd's socket being in its state directory, as it is by its defaults and by ours.
func bundlesOf(client *containerd.Client) (bundles, error) {
	address, err := addressOf(client)
	if err != nil {
		return bundles{}, err
	}
	state, err := filepath.EvalSymlinks(filepath.Dir(address))
	if err != nil {
		return bundles{}, fmt.Errorf("find containerd's state directory: %w", err)
	}
	namespace := client.DefaultNamespace()
	return bundles{
		dir:    filepath.Join(state, "io.containerd.runtime.v2.task", namespace),
		states: filepath.Join(runcStates, namespace),
	}, nil
}

// containers names those of which something is there: of a job, or of all.
func (b bundles) containers(job string) (ids []string, err error) {
	for _, dir := range []string{b.dir, b.states} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list what shims have left: %w", err)
		}
		for _, e := range entries {
			of := jobOf(e.Name())
			if of == "" || job != "" && of != job || slices.Contains(ids, e.Name()) {
				continue
			}
			if dir == b.states {
				if _, ok := b.state(e.Name()); !ok {
					continue
				}
			}
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// state is what runc keeps of a container.
type state struct {
	PID    int    `json:"init_process_pid"`
	Start  uint64 `json:"init_process_start"` // in clock ticks after the host's
	Config struct {
		Rootfs string `json:"rootfs"`
	} `json:"config"`
}

// state reads runc's of a container of this containerd: all of a host have the same directory.
func (b bundles) state(id string) (s state, ok bool) {
	text, err := os.ReadFile(filepath.Join(b.states, id, "state.json"))
	ok = err == nil && json.Unmarshal(text, &s) == nil && strings.HasPrefix(s.Config.Rootfs, filepath.Join(b.dir, id)+"/")
	return s, ok
}

// kill ends the container's first process, and so all of it.
func (s state) kill() error {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	if !(api.Process{PID: s.PID, Start: s.Start}).Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", s.PID, err)
	}
	if !ended(fd, killTimeout) {
		return fmt.Errorf("kill process %d: it still runs %v after SIGKILL", s.PID, killTimeout)
	}
	return nil
}

// removeBundles removes what shims have left of a job of which containerd knows no more.
func removeBundles(ctx context.Context, client *containerd.Client, job string) error {
	b, err := bundlesOf(client)
	if err != nil {
		return err
	}
	ids, err := b.containers(job)
	if err != nil || len(ids) == 0 {
		return err
	}
	known := map[string]bool{}
	if err := each(ctx, client, job, func(_ context.Context, c containerd.Container) error {
		known[c.ID()] = true // could not be removed
		return nil
	}); err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if !known[id] {
			errs = append(errs, b.remove(id))
		}
	}
	return errors.Join(errs...)
}

func (b bundles) remove(id string) error {
	bundle := filepath.Join(b.dir, id)
	work, err := os.Readlink(filepath.Join(bundle, "work"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read bundle of %s: %w", id, err)
	}
	s, ok := b.state(id)
	if ok {
		if err := s.kill(); err != nil {
			return fmt.Errorf("end container %s: %w", id, err)
		}
	}
	if err := mount.UnmountRecursive(filepath.Join(bundle, "rootfs"), 0); err != nil {
		return fmt.Errorf("unmount root of %s: %w", id, err)
	}
	left := []string{bundle}
	if filepath.Base(work) == id {
		left = append(left, work)
	}
	if ok {
		left = append(left, filepath.Join(b.states, id))
	}
	var errs []error
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove what a shim has left of %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
