package doctor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

const cgroupRoot = "/sys/fs/cgroup"

// What limits of jobs are made of, by version. Devices have no controller in
// v2.
var (
	needed2   = []string{"cpu", "memory", "pids"}
	needed1   = []string{"cpu", "memory", "pids", "devices", "freezer"}
	useful2   = []string{"io", "cpuset"}
	bootRemdy = "Boot with systemd.unified_cgroup_hierarchy=1."
)

func (n *node) cgroups(context.Context) []Check {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return []Check{fail("cgroups", "Mount /proc.", "%v", err)}
	}
	var (
		unified     bool
		controllers []string
	)
	for _, m := range mounts {
		switch {
		case m.FSType == "cgroup2" && m.Mountpoint == cgroupRoot:
			unified = true
			if b, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
				controllers = strings.Fields(string(b))
			}
		case m.FSType == "cgroup" && filepath.Dir(m.Mountpoint) == cgroupRoot:
			controllers = append(controllers, strings.Split(filepath.Base(m.Mountpoint), ",")...)
		}
	}
	hybrid := !unified && slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.FSType == "cgroup2" })
	return []Check{checkCgroups(unified, hybrid, controllers)}
}

func checkCgroups(unified, hybrid bool, controllers []string) Check {
	lacking := func(of []string) []string {
		return slices.DeleteFunc(slices.Clone(of), func(c string) bool { return slices.Contains(controllers, c) })
	}
	switch {
	case len(controllers) == 0:
		return fail("cgroups", bootRemdy, "none at %s", cgroupRoot)
	case unified && len(lacking(needed2)) > 0:
		return fail("cgroups", "Boot without cgroup_disable=, and without v1 hierarchies that hold these controllers.", "version 2 lacks %s", strings.Join(lacking(needed2), ", "))
	case unified && len(lacking(useful2)) > 0:
		return warn("cgroups", "Jobs run, without limits and figures of these.", "version 2 lacks %s", strings.Join(lacking(useful2), ", "))
	case unified:
		return ok("cgroups", "version 2 with %s", strings.Join(controllers, ", "))
	case len(lacking(needed1)) > 0:
		return fail("cgroups", bootRemdy, "version 1 lacks %s", strings.Join(lacking(needed1), ", "))
	case hybrid:
		return warn("cgroups", bootRemdy, "version 1 and 2 side by side: jobs use version 1, which containerd will give up by 2029")
	}
	return warn("cgroups", bootRemdy, "version 1: jobs run, but containerd will give it up by 2029")
}
