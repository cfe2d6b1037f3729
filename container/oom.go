package container

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// OOMKills counts the processes of a job that the kernel has killed for want
// of memory. v1 counts in each cgroup for itself, v2 in all parents too.
func OOMKills(cgroup string) (kills uint64) {
	for _, pattern := range []string{
		filepath.Join("/sys/fs/cgroup/memory", cgroup, "memory.oom_control"),
		filepath.Join("/sys/fs/cgroup/memory", cgroup, "*", "memory.oom_control"),
		filepath.Join("/sys/fs/cgroup", cgroup, "memory.events"),
	} {
		files, _ := filepath.Glob(pattern) // the pattern is well-formed
		for _, f := range files {
			kills += readCounter(f, "oom_kill")
		}
	}
	return kills
}

// readCounter reads a line "name value" of a flat-keyed cgroup file; what is
// not there counts as zero.
func readCounter(file, name string) uint64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), " "); ok && key == name {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}
