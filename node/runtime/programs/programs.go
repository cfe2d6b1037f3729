// Package programs finds the programs of a managed runtime and asks them who
// they are. It starts none of them to work.
package programs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// The programs of a managed runtime.
const (
	Containerd = "containerd"
	Shim       = "containerd-shim-runc-v2"
	Runc       = "runc"
	Dockerd    = "dockerd"
	// DockerInit is the first process of containers of `docker run --init`.
	DockerInit = "docker-init"
)

// Locate finds the path of each program, in dir or else on the PATH.
func Locate(dir string) (map[string]string, error) {
	paths := map[string]string{}
	for _, name := range []string{Containerd, Shim, Runc} {
		path, err := Find(dir, name)
		if err != nil {
			return nil, fmt.Errorf("%w, or set runtime.managed = false to use the host's containerd", err)
		}
		paths[name] = path
	}
	return paths, nil
}

// Find finds the path of one program, in dir or else on the PATH.
func Find(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	s, err := os.Stat(path)
	if err != nil || !s.Mode().IsRegular() || s.Mode()&0o111 == 0 {
		if path, err = exec.LookPath(name); err != nil {
			return "", fmt.Errorf("find %s: it is neither in %s (runtime.path) nor on the PATH: install Berth's runtime programs there", name, dir)
		}
	}
	return filepath.Abs(path)
}

// Version is what a program says of itself.
type Version struct {
	Number  string // such as 2.4.2
	Seccomp bool   // of runc: it can filter system calls
}

var number = regexp.MustCompile(`\bv?(\d+\.\d+\.\d+\S*)`)

// Ask runs a program for its version.
func Ask(ctx context.Context, path string) (Version, error) {
	flag := "--version"
	if filepath.Base(path) == Shim {
		flag = "-v"
	}
	out, err := exec.CommandContext(ctx, path, flag).CombinedOutput()
	if err != nil {
		return Version{}, fmt.Errorf("ask %s for its version: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return parse(path, string(out))
}

func parse(path, out string) (Version, error) {
	m := number.FindStringSubmatch(out)
	if m == nil {
		return Version{}, fmt.Errorf("ask %s for its version: none in %q", path, strings.TrimSpace(out))
	}
	return Version{Number: m[1], Seccomp: strings.Contains(out, "libseccomp:")}, nil
}

// AtLeast tells whether the number is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(v.Number, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
