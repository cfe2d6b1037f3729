package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Usage is what a job's containers used.
type Usage struct {
	// Memory in bytes, with the page cache, now and at most.
	Memory, Peak uint64
	// OOMKills counts processes that the kernel killed for want of memory.
	OOMKills uint64
}

// Read reads what a cgroup and all below it used so far.
func (t *Tree) Read(path string) (Usage, error) {
	read := t.read1
	if t.unified {
		read = t.read2
	}
	u, err := read(path)
	if err != nil {
		return Usage{}, fmt.Errorf("read cgroup %s: %w", path, err)
	}
	return u, nil
}

func (t *Tree) read1(path string) (u Usage, err error) {
	dir := filepath.Join(t.v1["memory"], path)
	if u.Memory, err = number(filepath.Join(dir, "memory.usage_in_bytes")); err != nil {
		return u, err
	}
	if u.Peak, err = number(filepath.Join(dir, "memory.max_usage_in_bytes")); err != nil {
		return u, err
	}
	// Each cgroup counts only the processes that were in it itself.
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreGone(err)
		}
		kills, err := field(filepath.Join(path, "memory.oom_control"), "oom_kill")
		u.OOMKills += kills
		return ignoreGone(err)
	})
	return u, err
}

func (t *Tree) read2(path string) (u Usage, err error) {
	dir := filepath.Join(t.v2, path)
	if u.Memory, err = number(filepath.Join(dir, "memory.current")); err != nil {
		return u, err
	}
	// Linux before 5.19 does not tell the peak.
	if u.Peak, err = number(filepath.Join(dir, "memory.peak")); ignoreGone(err) != nil {
		return u, err
	}
	u.OOMKills, err = field(filepath.Join(dir, "memory.events"), "oom_kill")
	return u, err
}

// ignoreGone ignores containers that end while they are looked at.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func number(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// field is the value of a key in a file of "key value" lines; 0 where the
// kernel does not know the key.
func field(file, key string) (uint64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), key+" "); ok {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, lines.Err()
}
