package worktree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestBind(t *testing.T) {
	n := newNode(t)
	stubs := n.share("stubs")
	n.must(stubs.Prepare("pip", 0, 0))
	source := n.fresh("source")
	n.write(source, "f", "cached")
	o := n.overlay()
	n.mount(o)
	c := n.container(n.root.path)
	stub := n.container(n.path("stubs/pip"))
	whole := n.container(stubs.path)
	for _, test := range []struct {
		root *Root
		b    Binding
		c    *container
		path string
	}{
		{n.root, Binding{Target: project + "/cache/pip", Source: source, UID: 12, GID: 34}, c, "$B/group/project/cache/pip"},
		{n.root, Binding{Target: project + "/cache/ro", Source: source, ReadOnly: true}, c, "$B/group/project/cache/ro"},
		{n.root, Binding{Target: "elsewhere", Source: source}, c, "$B/elsewhere"},
		{stubs, Binding{Target: "pip", Source: source}, stub, "$B"},
		{stubs, Binding{Target: ".", Source: source, ReadOnly: true}, whole, "$B"},
	} {
		n.must(test.root.Unbind(t.Context(), test.b))
		n.must(test.root.Bind(test.b))
		if err := test.root.Bind(test.b); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%s: bound twice: %v", test.b.Target, err)
		}
		if got := test.c.run("cat " + test.path + "/f"); got != "cached" {
			t.Errorf("%s: reads %q", test.b.Target, got)
		}
		_, code := test.c.try("echo x > " + test.path + "/g")
		if (code != "0") != test.b.ReadOnly {
			t.Errorf("%s: writing exits %s", test.b.Target, code)
		}
		test.c.run("cd " + test.path + "; sleep 1000 & cd /")
		if err := test.root.Unbind(t.Context(), test.b); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: unbound in use: %v", test.b.Target, err)
		}
		test.c.run("kill $!; wait $! || true")
		n.must(test.root.Unbind(t.Context(), test.b))
		if got := test.c.run("ls " + test.path); got != "" && test.b.Target != "." {
			t.Errorf("%s: sees %q after", test.b.Target, got)
		}
	}
	for _, dir := range []string{"cache", "cache/pip"} {
		if got := n.look(filepath.Join(o.Upper, dir), false)["."]; got != "40755 12:34" {
			t.Errorf("%s is %s", dir, got)
		}
	}
	n.unmount(o)
}

func TestBindRefuses(t *testing.T) {
	n := newNode(t)
	source := n.fresh("source")
	o := n.overlay()
	n.mount(o)
	n.must(os.Symlink(n.path("empty"), filepath.Join(n.tree(), "link")))
	n.write(n.tree(), "file", "")
	for path, part := range map[string]string{"link": "symbolic link", "link/x": "symbolic link", "file": "no directory", "file/x": "no directory"} {
		err := n.root.Bind(Binding{Target: project + "/" + path, Source: source})
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(fmt.Sprint(err), "target group/project/"+path) || !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := n.root.Bind(Binding{Target: project + "/../../x", Source: source}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
	b := Binding{Target: project + "/a/b", Source: source}
	n.must(n.root.Bind(b))
	c := n.container(n.root.path)
	c.run("mv $B/group/project/a $B/group/project/c; mkdir -p $B/group/project/a/b")
	if err := n.root.Unbind(t.Context(), b); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("unbound what was moved: %v", err)
	}
	if err := n.root.Unmount(t.Context(), project, o); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("unmounted what has a mount: %v", err)
	}
}

// As on kernels that make no mount read-only before it is somewhere.
func TestBindStaged(t *testing.T) {
	n := newNode(t)
	source := n.fresh("source")
	tree, err := staged(source)
	n.must(err)
	defer func() { _ = unix.Close(tree) }()
	dir, err := n.root.find("group")
	n.must(err)
	defer func() { _ = unix.Close(dir) }()
	c := n.container(n.root.path)
	n.must(unix.MoveMount(tree, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
	if text, code := c.try("echo x > $B/group/f"); code == "0" || !strings.Contains(text, "Read-only") {
		t.Errorf("exit %s: %s", code, text)
	}
	n.write(source, "f", "the source is not")
}
