package worktree

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// node is a place with layers and a builds directory, as a job has them.
type node struct {
	testing.TB
	dir  string
	root *Root
	n    int
}

const project = "group/project"

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	n := &node{TB: t, dir: t.TempDir()}
	n.mkdir("empty")
	n.root = n.share("builds")
	n.must(n.root.Prepare(project, 0, 0))
	return n
}

// share makes a root, which is gone after the test.
func (n *node) share(name string) *Root {
	n.Helper()
	dir := n.mkdir(name)
	n.must(Share(dir))
	n.Cleanup(func() { n.must(Detach(dir)) })
	root, err := OpenRoot(dir)
	n.must(err)
	n.Cleanup(root.Close)
	return root
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) mkdir(name string) string {
	n.Helper()
	n.must(os.MkdirAll(n.path(name), 0o755))
	return n.path(name)
}

// fresh makes an empty directory.
func (n *node) fresh(name string) string {
	n.n++
	return n.mkdir(name + strconv.Itoa(n.n))
}

// overlay makes a clone of layers.
func (n *node) overlay(lower ...string) layer.Overlay {
	n.Helper()
	dir := n.fresh("clone")
	o := layer.Overlay{Lower: lower, Upper: filepath.Join(dir, "fs"), Work: filepath.Join(dir, "work")}
	n.must(os.Mkdir(o.Upper, 0o755))
	n.must(os.Mkdir(o.Work, 0o755))
	if len(lower) > 0 {
		n.must(layer.CopyRoot(o.Upper, lower[0]))
	}
	return o
}

// tree is where the project directory is.
func (n *node) tree() string { return filepath.Join(n.root.path, project) }

func (n *node) mount(o layer.Overlay) {
	n.Helper()
	n.must(n.root.Mount(project, o, n.path("empty")))
}

func (n *node) unmount(o layer.Overlay) {
	n.Helper()
	n.must(n.root.Unmount(n.Context(), project, o))
}

// layer lets work write a layer upon others through the kernel.
func (n *node) layer(work func(root string), lower ...string) string {
	n.Helper()
	o := n.overlay(lower...)
	n.mount(o)
	work(n.tree())
	n.unmount(o)
	return o.Upper
}

// write writes files, given by name and content.
func (n *node) write(root string, files ...string) {
	n.Helper()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(root, files[i])
		n.must(os.MkdirAll(filepath.Dir(path), 0o755))
		n.must(os.WriteFile(path, []byte(files[i+1]), 0o644))
	}
}

// look tells everything about each file below root, with times if wanted.
func (n *node) look(root string, times bool) map[string]string {
	n.Helper()
	tree := map[string]string{}
	n.must(filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		n.must(err)
		rel, err := filepath.Rel(root, path)
		n.must(err)
		var st unix.Stat_t
		n.must(unix.Lstat(path, &st))
		text := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		if times {
			text += fmt.Sprintf(" %d", unix.TimespecToNsec(st.Mtim))
		}
		buf := make([]byte, 64)
		if size, err := unix.Lgetxattr(path, "user.x", buf); err == nil {
			text += " x=" + string(buf[:size])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			n.must(err)
			if len(data) > 20 {
				data = fmt.Appendf(nil, "%d bytes in %d blocks %x", len(data), st.Blocks, sha256.Sum256(data))
			}
			text += " " + string(data)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			n.must(err)
			text += " to " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" rdev %x", st.Rdev)
		}
		tree[rel] = text
		return nil
	}))
	return tree
}
