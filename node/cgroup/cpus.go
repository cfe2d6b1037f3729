package cgroup

import (
	"os"
	"path/filepath"
	"strings"
)

// CPUs are those that a cgroup may use, as the kernel lists them, or those of
// the nearest cgroup above it that says. Empty is all.
func (t *Tree) CPUs(path string) string {
	for dir := filepath.Clean("/" + path); ; dir = filepath.Dir(dir) {
		for _, root := range []string{"/sys/fs/cgroup/cpuset", "/sys/fs/cgroup"} {
			for _, file := range []string{"cpuset.cpus.effective", "cpuset.effective_cpus"} {
				list, err := os.ReadFile(filepath.Join(root, dir, file))
				if text := strings.TrimSpace(string(list)); err == nil && text != "" {
					return text
				}
			}
		}
		if dir == "/" {
			return ""
		}
	}
}
