package worktree

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// What was cloned without a mount becomes the upper layer of one.
func TestAdopt(t *testing.T) {
	for _, test := range []struct {
		name   string
		path   string
		guard  bool
		inside bool // a process of the job
		copied bool
	}{
		{name: "nobody inside", path: project, guard: true},
		{name: "a process inside", path: project, guard: true, inside: true, copied: true},
		{name: "not guarded", path: project, copied: true},
		{name: "below the root", path: "project", guard: true, copied: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			if test.guard {
				n.must(n.root.Guard(test.path, 0, 0))
				n.must(n.root.Guard(test.path, 0, 0))
			}
			c := n.container(n.root.path)
			c.run("rm -rf $B/" + test.path + "; mkdir -p $B/" + test.path + "; cd $B/" + test.path + `; git init -q .
				echo x > file; mkdir -p dir/sub; ln -s ../file dir/link; ln file dir/hard; mkfifo pipe; chmod 2751 .; chown 12:34 .
				mknod gone c 0 0; mknod dir/gone c 0 0; truncate -s 16M sparse`)
			tree := filepath.Join(n.root.path, test.path)
			n.must(unix.Lsetxattr(tree, "user.x", []byte("root"), 0))
			if test.inside {
				c.run("sleep 1000 &")
			}
			c.run("cd /")
			before, root := n.look(tree, false), n.look(tree, true)["."]
			o := n.overlay()
			copied, err := n.root.Adopt(t.Context(), test.path, o)
			n.must(err)
			if copied != test.copied {
				t.Errorf("copied: %v", copied)
			}
			if got := n.look(tree, false); len(got) != 1 || got["."] != "40755 12:34" {
				t.Errorf("left: %v", got)
			}
			if d := cmp.Diff(root, n.look(o.Upper, true)["."]); d != "" {
				t.Error(d)
			}
			n.must(n.root.Mount(test.path, o, n.path("empty")))
			// The job forged files that are none for the kernel now.
			for _, name := range []string{"gone", "dir/gone"} {
				delete(before, name)
				if _, err := os.Lstat(filepath.Join(tree, name)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: %v", name, err)
				}
				_ = os.Remove(filepath.Join(o.Upper, name))
			}
			if d := cmp.Diff(before, n.look(tree, false)); d != "" {
				t.Error(d)
			}
			c.run("cd $B/" + test.path + " && git status --porcelain && echo more >> dir/hard && test $(cat file | wc -l) = 2; cd /")
			if test.inside {
				// What it still has is no longer what is published.
				c.run("echo evil > /proc/$!/cwd/file; echo evil > /proc/$!/cwd/new; true")
				if _, err := os.Lstat(filepath.Join(o.Upper, "new")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a process wrote past the mount: %v", err)
				}
				c.run("kill $!; wait $! || true")
			}
			n.must(n.root.Unmount(t.Context(), test.path, o))
		})
	}
}

func TestAdoptRefuses(t *testing.T) {
	n := newNode(t)
	if _, err := n.root.Adopt(t.Context(), project, n.overlay(n.fresh("lower"))); !errdefs.IsInvalidArgument(err) {
		t.Errorf("upon layers: %v", err)
	}
	n.must(os.Symlink(n.path("empty"), n.path("builds/group/link")))
	if _, err := n.root.Adopt(t.Context(), "group/link", n.overlay()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a link: %v", err)
	}
	other := n.mkdir("other")
	n.must(unix.Mount("tmpfs", other, "tmpfs", 0, ""))
	defer func() { n.must(unix.Unmount(other, unix.MNT_DETACH)) }()
	o := layer.Overlay{Upper: n.mkdir("other/fs"), Work: n.mkdir("other/work")}
	if _, err := n.root.Adopt(t.Context(), project, o); !errors.Is(err, unix.EXDEV) {
		t.Errorf("another file system: %v", err)
	}
}

// Whiteouts that a job forged hide nothing but what the job itself sees, and reach no cache that is taken file by
// file, or fresh.
func TestForgedWhiteouts(t *testing.T) {
	n := newNode(t)
	n.must(n.root.Guard(project, 0, 0))
	n.write(n.tree(), "src/x", "x", "deps/a", "a")
	for _, name := range []string{"deps/gone", "src/gone"} {
		n.must(unix.Mknod(filepath.Join(n.tree(), name), unix.S_IFCHR, 0))
	}
	o := n.overlay()
	_, err := n.root.Adopt(t.Context(), project, o)
	n.must(err)
	for _, paths := range [][]string{{"deps"}, {"*/*"}} {
		stack, err := stackOf(o, nil)
		n.must(err)
		p, err := MakePlan(t.Context(), stack, Selection{Dir: "/x", Paths: paths})
		n.must(err)
		dst := n.fresh("layer")
		n.must(p.Take(t.Context(), dst))
		o.Lower = p.Lower(dst)
		for _, name := range []string{"deps/gone", "src/gone"} {
			if _, err := os.Lstat(filepath.Join(dst, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%v: %s: %v", paths, name, err)
			}
		}
	}
}
