package worktree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mounts come to running containers and go from them; what uses one keeps it.
func TestMountSpreads(t *testing.T) {
	n := newNode(t)
	c := n.container(n.root.path)
	lower := n.fresh("lower")
	n.write(lower, "f", "from below")
	o := n.overlay(lower)
	n.mount(o)
	if got := c.run("cat $B/group/project/f; echo mine > $B/group/project/g"); got != "from below" {
		t.Errorf("the container reads %q", got)
	}
	if mounted, err := n.root.Mounted(project, o); err != nil || !mounted {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	if err := n.root.Mount(project, o, n.path("empty")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("mounted twice: %v", err)
	}
	c.run("cd $B/group/project; sleep 1000 & cd /")
	if err := n.root.Unmount(t.Context(), project, o); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("unmounted in use: %v", err)
	}
	if got := c.run("cat $B/group/project/g"); got != "mine" {
		t.Errorf("the container reads %q", got)
	}
	c.run("kill $!; wait $! || true")
	n.unmount(o)
	n.unmount(o)
	if got := c.run("ls $B/group/project"); got != "" {
		t.Errorf("the container sees %q", got)
	}
	if data, err := os.ReadFile(filepath.Join(o.Upper, "g")); err != nil || string(data) != "mine\n" {
		t.Errorf("written: %q, %v", data, err)
	}
}

// Whoever has bound the tree for himself goes on writing to it when the mount is gone.
func TestUnmountBoundElsewhere(t *testing.T) {
	n := newNode(t)
	o := n.overlay()
	n.mount(o)
	c := n.container(n.root.path)
	c.run("mkdir -p $B/own; mount --bind $B/group/project $B/own; mount --make-private $B/own")
	err := n.root.Unmount(t.Context(), project, o)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(fmt.Sprint(err), "/own") {
		t.Fatalf("error %v", err)
	}
	c.end()
	n.unmount(o)
}

// A mount that the job has moved is not unmounted where it was, nor what is there instead.
func TestUnmountMoved(t *testing.T) {
	n := newNode(t)
	o := n.overlay()
	n.mount(o)
	c := n.container(n.root.path)
	c.run("mv $B/group $B/other; mkdir $B/group; ln -s ../other/project $B/group/project")
	if err := n.root.Unmount(t.Context(), project, o); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	c.run("rm -r $B/group; ln -s other $B/group")
	if err := n.root.Unmount(t.Context(), project, o); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	if mounted, err := mountinfo.Mounted(n.path("builds/other/project")); err != nil || !mounted {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	c.end()
	n.must(Detach(n.root.path))
	if left := n.mounts(); left != nil {
		t.Errorf("mounts: %v", left)
	}
}

// mounts lists what is mounted in the node's directory.
func (n *node) mounts() (points []string) {
	n.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir))
	n.must(err)
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points
}

func TestShare(t *testing.T) {
	n := newNode(t)
	outer := n.share("outer")
	inner := n.mkdir("outer/inner")
	// Bound from a shared mount, as all are where the host's own root is one.
	n.must(Share(inner))
	n.must(Share(inner))
	n.mkdir("outer/inner/x")
	n.must(unix.Mount(n.path("empty"), inner+"/x", "", unix.MS_BIND, ""))
	want := []string{outer.path, inner, inner + "/x"}
	var got []string
	for _, m := range n.mounts() {
		if strings.HasPrefix(m, outer.path) {
			got = append(got, m)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// A Share cut short left a mere bind.
	short := n.mkdir("outer/short")
	n.must(unix.Mount(short, short, "", unix.MS_BIND, ""))
	n.must(Share(short))
	shared, _, err := shared(short)
	if err != nil || !shared {
		t.Errorf("shared: %v, %v", shared, err)
	}
	n.must(Detach(inner))
	n.must(Detach(inner))
	if _, err := OpenRoot(inner); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("opened what is not shared: %v", err)
	}
}

func TestPrepare(t *testing.T) {
	n := newNode(t)
	for _, path := range []string{"", ".", "..", "../x", "/x", "a/../b", "a//b", "a/"} {
		if err := n.root.Prepare(path, 0, 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", path, err)
		}
	}
	n.must(n.root.Prepare("p/q/r", 12, 34))
	n.must(n.root.Prepare("p/q/r", 56, 78))
	for _, path := range []string{"p", "p/q", "p/q/r"} {
		if got := n.look(n.path("builds/"+path), false)["."]; got != "40755 12:34" {
			t.Errorf("%s is %s", path, got)
		}
	}
	n.must(os.Symlink(n.path("empty"), n.path("builds/link")))
	n.write(n.path("builds"), "file", "")
	for _, path := range []string{"link", "link/x", "file/x"} {
		if err := n.root.Prepare(path, 0, 0); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// An overlay of this project behaves as a plain directory, whatever layers there are.
func TestLikePlainDirectory(t *testing.T) {
	n := newNode(t)
	c := n.container(n.root.path)
	workspace := n.layer(func(root string) {
		n.write(root, "src/main.js", "main", "package.json", "{}", "README", "text")
	})
	cache := n.layer(func(root string) {
		n.write(root, "node_modules/a/index.js", "a", "node_modules/b/index.js", "b", "node_modules/.bin/x", "x", "dist/out", "o")
		n.must(os.Symlink("../a/index.js", filepath.Join(root, "node_modules/.bin/a")))
	})
	second := n.layer(func(root string) {
		n.must(os.RemoveAll(filepath.Join(root, "node_modules/b")))
		n.write(root, "node_modules/b/other.js", "other")
	}, cache)
	o := n.overlay(second, cache, workspace)
	n.mount(o)
	plain := n.mkdir("builds/plain")
	for name := range n.look(n.tree(), false) {
		if info, err := os.Lstat(filepath.Join(n.tree(), name)); err == nil && info.IsDir() {
			n.must(os.MkdirAll(filepath.Join(plain, name), 0o755))
		}
	}
	for name := range n.look(n.tree(), false) {
		if info, err := os.Lstat(filepath.Join(n.tree(), name)); err == nil && !info.IsDir() {
			copyOne(t, filepath.Join(plain, name), filepath.Join(n.tree(), name))
		}
	}
	for _, script := range []string{
		"git init -q . && git add package.json src README && git -c user.name=x -c user.email=x commit -qm x && git status --porcelain",
		"rm -rf node_modules && mkdir node_modules && ls -A node_modules",
		"mkdir -p node_modules/c && echo c > node_modules/c/index.js && mv node_modules/c dist/c && ls -R dist",
		"mv src/main.js node_modules/main.js && mv dist src/dist && ls -R . | grep -v '^total'",
		"mv src/dist/out out && mv out node_modules/ && find . -path ./.git -prune -o -print | sort",
		"ln node_modules/main.js linked && echo more >> linked && cat node_modules/main.js && stat -c %h linked",
		"ln -s nowhere dangling && ln -sf README dangling && cat dangling",
		"truncate -s 64M sparse && echo end >> sparse && cp --sparse=always sparse copy && cmp sparse copy && stat -c %s copy && test $(stat -c %b copy) -lt 1000",
		"mknod null c 1 3 && echo gone > null && stat -c %t:%T null && mkfifo pipe && stat -c %F pipe",
		"mkdir deep && cd deep && for i in 1 2 3 4 5 6 7 8; do mkdir d && cd d; done && pwd | wc -c > /dev/null && echo x > f && cd ../../../../../../../../.. && find deep | wc -l",
		"chmod 600 README && chown 5:6 README && stat -c '%a %u:%g' README && touch -d @1000 README && stat -c %Y README",
		"rm README && mkdir README && echo in > README/in && rm -r README && echo file > README && cat README",
		"git clean -ffdx | sort && git status --porcelain && git checkout -f -q && ls -A",
		"rm -rf ./* && ls -A",
	} {
		a, codeA := c.try("cd $B/plain && " + script)
		b, codeB := c.try("cd $B/group/project && " + script)
		if d := cmp.Diff(codeA+" "+a, codeB+" "+b); d != "" || codeA != "0" {
			t.Errorf("%s: exit %s (- plain, + overlay):\n%s", script, codeA, d)
		}
	}
	c.run("cd /")
	n.unmount(o)
}

// However a process of the job moves things about, nothing is mounted or unmounted outside of its directory, and
// nothing is made there.
func TestHostile(t *testing.T) {
	n := newNode(t)
	outside := n.mkdir("outside")
	n.mkdir("outside/project")
	n.mkdir("outside/project/cache")
	// A mount that must stay.
	n.must(unix.Mount(n.path("empty"), n.path("outside/project/cache"), "", unix.MS_BIND, ""))
	defer func() { n.must(unix.Unmount(n.path("outside/project/cache"), unix.MNT_DETACH)) }()
	source := n.fresh("source")
	before := n.look(outside, false)
	n.mkdir("builds/group/project/cache")
	end := n.attacker(outside)
	done := map[string]int{}
	note := func(what string, err error) {
		if err == nil {
			done[what]++
		} else if !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) && !errdefs.IsAlreadyExists(err) {
			done[what+" failed"]++
		}
	}
	allowed := func(point string) bool {
		return point == n.path("outside/project/cache") || strings.HasPrefix(point, n.root.path)
	}
	for range 3000 {
		if done["mount"] >= 50 && done["bind"] >= 20 {
			break
		}
		o := n.overlay()
		note("prepare", n.root.Prepare(project, 0, 0))
		note("mount", n.root.Mount(project, o, n.path("empty")))
		b := Binding{Target: project + "/cache", Source: source}
		note("bind", n.root.Bind(b))
		for _, point := range n.mounts() {
			if !allowed(point) {
				t.Fatalf("mounted at %s", point)
			}
		}
		n.detachBelow()
	}
	t.Logf("done: %v", done)
	if d := cmp.Diff(before, n.look(outside, false)); d != "" {
		t.Error(d)
	}
	if mounted, err := mountinfo.Mounted(n.path("outside/project/cache")); err != nil || !mounted {
		t.Errorf("the mount outside: %v, %v", mounted, err)
	}
	if done["mount"] == 0 || done["bind"] == 0 {
		t.Errorf("nothing was mounted: %v", done)
	}
	end()
}

// below lists what is mounted below the root, the uppermost first.
func (n *node) below() (points []string) {
	for _, point := range n.mounts() {
		if point != n.root.path && strings.HasPrefix(point, n.root.path) {
			points = append([]string{point}, points...)
		}
	}
	return points
}

// detachBelow detaches all below the root, while it is attacked.
func (n *node) detachBelow() {
	n.Helper()
	for range 10_000 {
		points := n.below()
		if len(points) == 0 {
			return
		}
		for _, point := range points {
			_ = detach(point) // again, if it was moved
		}
	}
	n.Fatalf("cannot unmount %v", n.below())
}

// The same with unmounting: at best it says that the mount was moved.
func TestHostileUnmount(t *testing.T) {
	n := newNode(t)
	outside := n.mkdir("outside")
	n.mkdir("outside/project")
	n.must(unix.Mount(n.path("empty"), n.path("outside/project"), "", unix.MS_BIND, ""))
	defer func() { n.must(unix.Unmount(n.path("outside/project"), unix.MNT_DETACH)) }()
	end := n.attacker(outside)
	unmounted, refused := 0, 0
	for range 1000 {
		if unmounted >= 10 && refused >= 10 {
			break
		}
		o := n.overlay()
		if err := n.root.Mount(project, o, n.path("empty")); err != nil {
			continue
		}
		err := n.root.Unmount(t.Context(), project, o)
		switch {
		case err == nil:
			unmounted++
		case errdefs.IsFailedPrecondition(err):
			refused++
		default:
			t.Error(err)
		}
		if mounted, err := mountinfo.Mounted(n.path("outside/project")); err != nil || !mounted {
			t.Fatalf("the mount outside: %v, %v", mounted, err)
		}
		n.detachBelow()
	}
	t.Logf("unmounted %d, refused %d", unmounted, refused)
	if unmounted+refused == 0 {
		t.Error("nothing was mounted")
	}
	end()
}
