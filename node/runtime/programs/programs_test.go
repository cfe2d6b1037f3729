package programs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLocate(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	put := func(dir, name string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", second)
	put(first, Containerd, 0o755)
	put(second, Containerd, 0o755)
	put(first, Shim, 0o644) // not executable
	put(second, Shim, 0o755)
	if _, err := Locate(first); err == nil || !strings.Contains(err.Error(), "find runc: it is neither in "+first) {
		t.Errorf("got %v", err)
	}
	put(second, Runc, 0o755)
	paths, err := Locate(first)
	if err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{Containerd: first, Shim: second, Runc: second} {
		if paths[name] != filepath.Join(dir, name) {
			t.Errorf("%s is at %s", name, paths[name])
		}
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		out     string
		want    Version
		current bool // 1.2 or newer
	}{
		{"containerd github.com/containerd/containerd/v2 v2.4.2 abcdef", Version{Number: "2.4.2"}, true},
		{"containerd-shim-runc-v2:\n  Version:  v2.4.2\n  Revision: \n", Version{Number: "2.4.2"}, true},
		{"runc version 1.5.2\nspec: 1.3.0\ngo: go1.26.8\nlibseccomp: 2.5.4\n", Version{Number: "1.5.2", Seccomp: true}, true},
		{"runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\nlibseccomp: 2.5.4\n", Version{Number: "1.1.5+ds1", Seccomp: true}, false},
		{"runc version 1.3.0\nspec: 1.2.1\n", Version{Number: "1.3.0"}, true},
	} {
		v, err := parse("x", tc.out)
		if err != nil || v != tc.want || v.AtLeast(1, 2) != tc.current {
			t.Errorf("%q: got %+v, %v", tc.out, v, err)
		}
	}
	if _, err := parse("x", "usage: x"); err == nil {
		t.Error("accepted what is no version")
	}
}
