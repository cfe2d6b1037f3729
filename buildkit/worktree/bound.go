package worktree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unbound is an error if some mount namespace has the file system of a mount on its own. What spread to it from the
// mount goes with that; what a container was given by a bind of its own does not.
func unbound(mounted *mountinfo.Info) error {
	processes, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return backoff.Permanent(err)
	}
	seen := map[string]bool{}
	for _, link := range processes {
		namespace, err := os.Readlink(link)
		if err != nil || seen[namespace] {
			continue // ended, most likely
		}
		dir := filepath.Dir(filepath.Dir(link))
		mounts, err := mountsOf(filepath.Join(dir, "mountinfo"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return backoff.Permanent(fmt.Errorf("read mounts of other processes: %w", err))
		}
		seen[namespace] = true
		for _, m := range mounts {
			if m.Major == mounted.Major && m.Minor == mounted.Minor && m.ID != mounted.ID && !slave(m, mounted) {
				return fmt.Errorf("process %s has it bound at %s: %w", filepath.Base(dir), m.Mountpoint, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

func mountsOf(path string) ([]*mountinfo.Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// group is the group of mounts that a mount is shared in; empty if in none.
func group(m *mountinfo.Info) string { return optional(m, "shared:") }

// slave tells whether a mount is another's copy, and goes when that goes.
func slave(m, of *mountinfo.Info) bool {
	shared := group(of)
	return shared != "" && (optional(m, "master:") == shared || group(m) == shared)
}

func optional(m *mountinfo.Info, field string) string {
	for text := range strings.FieldsSeq(m.Optional) {
		if value, ok := strings.CutPrefix(text, field); ok {
			if _, err := strconv.Atoi(value); err == nil {
				return value
			}
		}
	}
	return ""
}
