package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The oldest kernel that has all that Berth and its containerd use: pidfds
// that can be polled, and overlayfs's volatile and redirect features.
const (
	leastMajor = 5
	leastMinor = 10
)

func (n *node) kernel(context.Context) []Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Check{fail("kernel", "Run it on Linux.", "%v", err)}
	}
	checks := []Check{checkRelease(unix.ByteSliceToString(u.Release[:]))}

	var missing []string
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			missing = append(missing, ns)
		}
	}
	if missing != nil {
		checks = append(checks, fail("namespaces", "Boot a distribution's kernel; this one was built without them.", "missing: %s", strings.Join(missing, ", ")))
	} else {
		checks = append(checks, ok("namespaces", "mnt, pid, net, ipc, uts, cgroup"))
	}

	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	return append(checks, checkSeccomp(string(actions), err))
}

func checkRelease(release string) Check {
	const remedy = "Boot a newer kernel: 5.15 or later is best."
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return warn("kernel", remedy, "version %q can not be compared", release)
	}
	if major < leastMajor || major == leastMajor && minor < leastMinor {
		return fail("kernel", remedy, "version %s is older than %d.%d", release, leastMajor, leastMinor)
	}
	return ok("kernel", "%s", release)
}

func checkSeccomp(actions string, err error) Check {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fail("seccomp", "Boot a distribution's kernel; this one was built without CONFIG_SECCOMP_FILTER.", "the kernel can not filter system calls")
	case err != nil:
		return warn("seccomp", "Run it as root.", "%v", err)
	case !strings.Contains(actions, "errno"):
		return fail("seccomp", "Boot a distribution's kernel.", "the kernel knows only %s", strings.TrimSpace(actions))
	}
	return ok("seccomp", "available")
}

// security tells of modules that may forbid what jobs do.
func (n *node) security(context.Context) []Check {
	var checks []Check
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.HasPrefix(string(b), "Y") {
		checks = append(checks, ok("AppArmor", "enabled"))
	} else {
		checks = append(checks, ok("AppArmor", "off"))
	}
	switch b, err := os.ReadFile("/sys/fs/selinux/enforce"); {
	case err != nil:
		checks = append(checks, ok("SELinux", "off"))
	case strings.HasPrefix(string(b), "1"):
		checks = append(checks, warn("SELinux", "If jobs are denied what they should have, ausearch -m avc names it; setenforce 0 makes sure that it is this.", "enforcing"))
	default:
		checks = append(checks, ok("SELinux", "permissive"))
	}
	return checks
}
