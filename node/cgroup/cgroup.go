// Package cgroup makes, reads and removes the cgroup that holds all of a
// job's containers, on hosts with cgroup v1, v2 or both.
//
// A job's cgroup has the same path in each hierarchy. Containers get their
// own below it, which the OCI runtime makes and removes.
package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/cgroups/v3"
	"github.com/moby/sys/mountinfo"
)

// Tree is the host's cgroup hierarchies.
type Tree struct {
	// v1 holds the mount points of v1 hierarchies by what they control; empty
	// on a host with v2 alone.
	v1 map[string]string
	// v2 is the mount point of the unified hierarchy, empty if there is none.
	v2 string
	// unified tells that v2 has the controllers.
	unified bool
}

// Host finds the hierarchies of this host.
func Host() (*Tree, error) {
	mode := cgroups.Mode()
	if mode == cgroups.Unavailable {
		return nil, fmt.Errorf("no cgroups at /sys/fs/cgroup")
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	t := &Tree{v1: map[string]string{}, unified: mode == cgroups.Unified}
	for _, m := range mounts {
		// Containers may have further mounts; only the standard places count,
		// since those are where the OCI runtime looks.
		if m.Mountpoint != "/sys/fs/cgroup" && filepath.Dir(m.Mountpoint) != "/sys/fs/cgroup" {
			continue
		}
		if m.FSType == "cgroup2" {
			t.v2 = m.Mountpoint
		} else {
			t.v1[filepath.Base(m.Mountpoint)] = m.Mountpoint
		}
	}
	return t, nil
}

// dirs are the directories of a cgroup that exist, one per hierarchy.
func (t *Tree) dirs(path string) []string {
	var dirs []string
	for _, mount := range t.mounts() {
		dir := filepath.Join(mount, path)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (t *Tree) mounts() []string {
	var mounts []string
	for _, m := range t.v1 {
		mounts = append(mounts, m)
	}
	if t.v2 != "" {
		mounts = append(mounts, t.v2)
	}
	slices.Sort(mounts)
	return mounts
}

// Children lists the names of the cgroups right below a path.
func (t *Tree) Children(path string) ([]string, error) {
	var names []string
	for _, dir := range t.dirs(path) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list cgroups below %s: %w", path, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// valid refuses paths that would reach outside the hierarchies or name the
// root of one.
func valid(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("cgroup path %q: expected an absolute path below the root, such as /berth/job", path)
	}
	return nil
}
