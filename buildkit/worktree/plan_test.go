package worktree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// saved is a project directory whose job has worked, and is over.
type saved struct {
	*node
	o    layer.Overlay
	base []string
}

// saving lets a job work upon a workspace and a cache's base.
func saving(t testing.TB, work func(root string), workspace string, base ...string) *saved {
	n := newNode(t)
	lower := n.layer(func(root string) { n.write(root, strings.Fields(workspace)...) })
	s := &saved{node: n, o: layer.Overlay{}}
	if len(base) > 0 {
		s.base = []string{n.layer(func(root string) { n.write(root, base...) })}
	}
	s.o = n.overlay(append(append([]string{}, s.base...), lower)...)
	n.mount(s.o)
	work(n.tree())
	n.unmount(s.o)
	return s
}

// stackOf splits the layers of an overlay as one of its caches sees them. base is the cache's own among the lower
// ones; none if it was empty.
func stackOf(o layer.Overlay, base []string) (Stack, error) {
	if len(base) == 0 {
		return Stack{Upper: o.Upper, Below: o.Lower}, nil
	}
	for i := range o.Lower {
		if rest := o.Lower[i:]; len(rest) >= len(base) && slices.Equal(rest[:len(base)], base) {
			return Stack{Upper: o.Upper, Above: o.Lower[:i], Base: base, Below: rest[len(base):]}, nil
		}
	}
	return Stack{}, fmt.Errorf("the project directory does not have the layers of the cache: %w", errdefs.ErrInvalidArgument)
}

func (s *saved) plan(paths ...string) *Plan {
	s.Helper()
	stack, err := stackOf(s.o, s.base)
	s.must(err)
	p, err := MakePlan(s.Context(), stack, Selection{Dir: "/builds/p", Paths: paths})
	s.must(err)
	return p
}

func TestVerdict(t *testing.T) {
	tracked := "src/x x README r"
	base := []string{"deps/a", "a", "deps/sub/b", "b"}
	for _, test := range []struct {
		name   string
		base   []string
		work   func(root string) error
		paths  []string
		want   Verdict
		quick  bool
		marked bool // hides something of the base
	}{
		{name: "nothing", paths: []string{"deps"}, want: Empty, quick: true},
		{name: "nothing done", base: base, paths: []string{"deps/"}, want: Unchanged, quick: true},
		{name: "nothing done, by pattern", base: base, paths: []string{"deps/**"}, want: Unchanged},
		{name: "a file made and removed", base: base, paths: []string{"deps"}, want: Unchanged, quick: true, work: func(root string) error {
			return errors.Join(os.WriteFile(root+"/deps/sub/t", nil, 0o600), os.Remove(root+"/deps/sub/t"), unix.Rmdir(root+"/src/none"))
		}},
		{name: "first", paths: []string{"deps"}, want: Fresh, quick: true, work: func(root string) error {
			return errors.Join(os.Mkdir(root+"/deps", 0o755), os.WriteFile(root+"/deps/a", nil, 0o600))
		}},
		{name: "a file more", base: base, paths: []string{"deps"}, want: UponBase, quick: true, work: func(root string) error {
			return os.WriteFile(root+"/deps/sub/c", nil, 0o600)
		}},
		{name: "a file less", base: base, paths: []string{"deps"}, want: UponBase, quick: true, marked: true, work: func(root string) error {
			return os.Remove(root + "/deps/a")
		}},
		{name: "made anew", base: base, paths: []string{"deps"}, want: Fresh, quick: true, work: func(root string) error {
			return errors.Join(os.RemoveAll(root+"/deps"), os.Mkdir(root+"/deps", 0o755), os.WriteFile(root+"/deps/z", nil, 0o600))
		}},
		{name: "gone", base: base, paths: []string{"deps"}, want: Empty, quick: true, work: func(root string) error {
			return os.RemoveAll(root + "/deps")
		}},
		{name: "one of two gone", base: append([]string{"more", "m"}, base...), paths: []string{"deps", "more"}, want: UponBase, quick: true, marked: true,
			work: func(root string) error { return os.Remove(root + "/more") }},
		{name: "no more selected", base: append([]string{"more", "m"}, base...), paths: []string{"deps"}, want: Fresh},
		{name: "with tracked files", paths: []string{"src"}, want: Fresh},
		{name: "only a tracked file", paths: []string{"README"}, want: Fresh},
		{name: "attributes alone", base: base, paths: []string{"deps"}, want: UponBase, quick: true, work: func(root string) error {
			return os.Chmod(root+"/deps/sub", 0o700)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := saving(t, func(root string) {
				if test.work != nil {
					if err := test.work(root); err != nil && !errors.Is(err, unix.ENOENT) {
						t.Fatal(err)
					}
				}
			}, tracked, test.base...)
			p := s.plan(test.paths...)
			if p.Verdict != test.want || (p.picks == nil) != test.quick {
				t.Fatalf("%s, quick: %v, %v", p.Verdict, p.quick, p.Warnings)
			}
			if p.Verdict == Empty || p.Verdict == Unchanged {
				if err := p.Take(t.Context(), s.fresh("layer")); !errdefs.IsInvalidArgument(err) {
					t.Errorf("taken: %v", err)
				}
				return
			}
			dst := s.fresh("layer")
			s.must(p.Take(t.Context(), dst))
			marked := false
			s.must(filepath.WalkDir(dst, func(path string, _ os.DirEntry, err error) error {
				s.must(err)
				var st unix.Stat_t
				s.must(unix.Lstat(path, &st))
				marked = marked || layer.Whiteout(&st)
				return nil
			}))
			if marked != test.marked {
				t.Errorf("marked: %v", marked)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	s := saving(t, func(root string) {
		if err := os.Symlink("src", root+"/link"); err != nil {
			t.Fatal(err)
		}
	}, "src/x x .git/config c")
	for path, want := range map[string]string{
		"":            "No matching files. Path is empty.",
		"none":        "none: no matching files. Ensure that the path is relative to the project directory (/builds/p).",
		"n*/x":        "n*/x: no matching files. Ensure that the path is relative to the project directory (/builds/p).",
		"../other":    "../other: /builds/other is outside of the project directory",
		"/etc/passwd": "/etc/passwd: /etc/passwd is outside of the project directory",
		"[":           "[: syntax error in pattern",
		"link/*":      "link/*: link is a symbolic link, which is not followed: failed precondition",
		".git":        gitWarning,
	} {
		if p := s.plan(path); cmp.Diff([]string{want}, p.Warnings) != "" {
			t.Errorf("%q: %q", path, p.Warnings)
		}
	}
	if p := s.plan("/builds/p/src", "/builds/p/sr?/x"); p.Warnings != nil || p.Files != 1 {
		t.Errorf("%d files, %q", p.Files, p.Warnings)
	}
}

// The job has no further name for a file that is published, and keeps what it had by other names.
func TestTakeHardlinks(t *testing.T) {
	for _, paths := range [][]string{{"deps"}, {"deps/*"}} {
		s := saving(t, func(root string) {
			for _, err := range []error{
				os.MkdirAll(root+"/deps/sub", 0o755), os.MkdirAll(root+"/store", 0o755),
				os.WriteFile(root+"/store/a", []byte("a"), 0o644), os.Link(root+"/store/a", root+"/deps/a"),
				os.Link(root+"/store/a", root+"/deps/sub/a"),
				os.WriteFile(root+"/deps/b", []byte("b"), 0o644), os.Link(root+"/deps/b", root+"/deps/sub/b"),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}, "src/x x")
		p := s.plan(paths...)
		dst := s.fresh("layer")
		s.must(p.Take(t.Context(), dst))
		stat := func(path string) (st unix.Stat_t) {
			s.must(unix.Lstat(path, &st))
			return st
		}
		a, b := stat(dst+"/deps/a"), stat(dst+"/deps/b")
		if a.Nlink != 2 || a.Ino != stat(dst+"/deps/sub/a").Ino || a.Ino == stat(s.o.Upper+"/store/a").Ino {
			t.Errorf("%v: a has %d names", paths, a.Nlink)
		}
		if b.Nlink != 2 || b.Ino != stat(dst+"/deps/sub/b").Ino {
			t.Errorf("%v: b has %d names", paths, b.Nlink)
		}
		s.o.Lower = p.Lower(dst)
		s.mount(s.o)
		s.write(s.tree(), "store/a", "changed", "deps/b", "changed")
		s.unmount(s.o)
		if got := s.look(dst, false); got["deps/a"] != "100644 0:0 a" || got["deps/b"] != "100644 0:0 b" {
			t.Errorf("%v: the layer has %v", paths, got)
		}
	}
}

// What cannot be taken stays where it was.
func TestTakeUndone(t *testing.T) {
	for _, paths := range [][]string{{"deps", "more"}, {"deps/**", "more"}} {
		s := saving(t, func(root string) {
			if err := os.RemoveAll(root + "/deps"); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"deps/a", "more"} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), nil, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
		}, "src/x x", "deps/old", "old")
		before := s.look(s.o.Upper, true)
		p := s.plan(paths...)
		dst := s.fresh("layer")
		s.write(dst, "more/in", "the way")
		if err := p.Take(t.Context(), dst); err == nil {
			t.Fatal("taken")
		}
		if d := cmp.Diff(before, s.look(s.o.Upper, true)); d != "" {
			t.Error(d)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errdefs.ErrAborted)
		if _, err := MakePlan(ctx, p.stack, Selection{Paths: []string{"**"}}); !errdefs.IsAborted(err) {
			t.Errorf("error %v", err)
		}
	}
}

// Devices, pipes, holes and attributes come along, whichever way.
func TestTakeSpecialFiles(t *testing.T) {
	for _, paths := range [][]string{{"deps"}, {"d*"}} {
		for _, byCopy := range []bool{false, true} {
			s := saving(t, func(root string) {
				dir := root + "/deps"
				sparse := dir + "/sparse"
				for _, err := range []error{
					os.Mkdir(dir, 0o750|os.ModeSticky), os.Chown(dir, 3, 4), unix.Lsetxattr(dir, "user.x", []byte("dir"), 0),
					unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(dir+"/pipe", 0o600),
					os.Symlink("/nowhere", dir+"/link"), os.Lchown(dir+"/link", 5, 6),
					os.WriteFile(sparse, []byte("begin"), 0o4755), os.Truncate(sparse, 32<<20), os.Chmod(sparse, 0o755|os.ModeSetuid),
					unix.Lsetxattr(sparse, "user.x", []byte("file"), 0),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
			}, "src/x x")
			before := s.look(s.o.Upper+"/deps", true)
			p := s.plan(paths...)
			dst := s.fresh("layer")
			if byCopy {
				s.must(p.Copy(t.Context(), dst))
			} else {
				s.must(p.Take(t.Context(), dst))
			}
			if d := cmp.Diff(before, s.look(dst+"/deps", true)); d != "" {
				t.Errorf("%v, by copy %v: %s", paths, byCopy, d)
			}
		}
	}
}

func TestOverlaps(t *testing.T) {
	n := newNode(t)
	workspace := n.layer(func(root string) { n.write(root, "src/x", "x") })
	for path, want := range map[string]bool{"src": true, "src/x": true, "src/y": false, "deps": false, "d*": true} {
		if got, err := Overlaps([]string{workspace}, Selection{Dir: "/x", Paths: []string{path}}); err != nil || got != want {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
}

func TestChown(t *testing.T) {
	n := newNode(t)
	lower := n.layer(func(root string) {
		n.write(root, "a", "a", "dir/b", "b")
		n.must(os.Chown(root+"/a", 1000, 1000))
		n.must(os.Chmod(root+"/a", 0o755|os.ModeSetuid))
		n.must(os.Chown(root+"/dir", 1000, 5))
		n.must(os.Symlink("x", root+"/link"))
		n.must(os.Lchown(root+"/link", 1000, 1000))
	})
	dst := n.fresh("layer")
	n.must(Chown(t.Context(), dst, []string{lower}, Owner{1000, 1000}, Owner{2000, 3000}))
	want := map[string]string{
		".": "40755 0:0", "a": "104755 2000:3000 a", "dir": "40755 2000:5", "dir/b": "100644 0:0 b", "link": "120777 2000:3000 to x",
	}
	if d := cmp.Diff(want, n.look(dst, false)); d != "" {
		t.Error(d)
	}
}
