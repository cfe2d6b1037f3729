package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// stack is layers in the making.
type stack struct {
	*testing.T
	dir    string
	layers []string // from the uppermost down
}

func newStack(t *testing.T) *stack {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	s := &stack{T: t, dir: t.TempDir()}
	s.mkdir("empty")
	s.mkdir("merged")
	return s
}

func (s *stack) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *stack) mkdir(name string) string {
	s.Helper()
	path := filepath.Join(s.dir, name)
	s.must(os.MkdirAll(path, 0o755))
	return path
}

// layer lets work write a further layer through the kernel.
func (s *stack) layer(work func(root string)) {
	s.Helper()
	n := strconv.Itoa(len(s.layers))
	o := Overlay{Lower: s.layers, Upper: s.mkdir("upper" + n), Work: s.mkdir("work" + n)}
	if len(s.layers) > 0 {
		s.must(CopyRoot(o.Upper, s.layers[0]))
	}
	target := s.mkdir("target")
	s.must(o.Mount(target, filepath.Join(s.dir, "empty")))
	work(target)
	s.must(Unmount(target))
	s.layers = append([]string{o.Upper}, s.layers...)
}

// merged is what the kernel shows of all layers.
func (s *stack) merged() map[string]string {
	s.Helper()
	target := s.mkdir("merged")
	lower := strings.Join(append(slices.Clone(s.layers), filepath.Join(s.dir, "empty")), ":")
	s.must(unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "redirect_dir=nofollow,lowerdir="+lower))
	defer func() { s.must(unix.Unmount(target, 0)) }()
	return s.tree(target)
}

func (s *stack) flat() map[string]string {
	s.Helper()
	dst, err := os.MkdirTemp(s.dir, "flat")
	s.must(err)
	s.must(Flatten(s.Context(), dst, s.layers))
	return s.tree(dst)
}

// tree tells everything about each file below root.
func (s *stack) tree(root string) map[string]string {
	s.Helper()
	tree := map[string]string{}
	links := map[uint64]string{} // the first name of each file
	s.must(filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		s.must(err)
		var st unix.Stat_t
		s.must(unix.Lstat(path, &st))
		rel, err := filepath.Rel(root, path)
		s.must(err)
		text := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		if rel != "." || len(s.layers) > 0 {
			text += fmt.Sprintf(" %d", unix.TimespecToNsec(st.Mtim))
		}
		xattrs, err := listXattrs(path)
		s.must(err)
		slices.Sort(xattrs)
		for _, name := range xattrs {
			if strings.HasPrefix(name, overlayXattr) {
				continue
			}
			value, err := getXattr(path, name)
			s.must(err)
			text += fmt.Sprintf(" %s=%q", name, value)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			s.must(err)
			text += fmt.Sprintf(" size %d blocks %d %x", st.Size, st.Blocks, sha256.Sum256(data))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			s.must(err)
			text += " to " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" rdev %x", st.Rdev)
		}
		if first, ok := links[st.Ino]; ok {
			text += " same as " + first
		} else {
			links[st.Ino] = rel
		}
		tree[rel] = text
		return nil
	}))
	return tree
}

func (s *stack) write(path, text string) {
	s.Helper()
	s.must(os.WriteFile(path, []byte(text), 0o644))
}

func TestFlatten(t *testing.T) {
	s := newStack(t)
	at := func(root string) func(string) string {
		return func(name string) string { return filepath.Join(root, name) }
	}
	s.layer(func(root string) {
		p := at(root)
		s.must(os.Chmod(root, 0o777|os.ModeSticky))
		s.must(unix.Lsetxattr(root, "user.root", []byte("r"), 0))
		for _, dir := range []string{"plain/sub", "gone", "opaque/old", "file-to-dir", "attributes", "kept/a/b"} {
			s.must(os.MkdirAll(p(dir), 0o755))
		}
		s.write(p("plain/a"), "a")
		s.write(p("plain/sub/b"), "b")
		s.write(p("gone/x"), "x")
		s.write(p("opaque/old/y"), "y")
		s.write(p("opaque/z"), "z")
		s.write(p("dir-to-be"), "file")
		s.write(p("kept/a/b/c"), "c")
		s.write(p("hidden"), "h")
		s.write(p("attributes/f"), "f")
		s.must(unix.Lsetxattr(p("attributes"), "user.dir", []byte("d"), 0))
		s.must(unix.Lsetxattr(p("attributes"), "trusted.dir", make([]byte, 1000), 0))
		s.must(unix.Lsetxattr(p("attributes/f"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		s.must(os.Chown(p("attributes"), 12, 34))
		s.must(os.Chmod(p("attributes"), 0o750|os.ModeSetgid))
		s.write(p("one"), "linked")
		s.must(os.Link(p("one"), p("two")))
		s.must(os.Link(p("one"), p("plain/three")))
		sparse, err := os.Create(p("sparse"))
		s.must(err)
		_, err = sparse.WriteAt([]byte("end"), 8<<20)
		s.must(err)
		s.must(sparse.Close())
		s.must(unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		s.must(unix.Mknod(p("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
		s.must(unix.Mkfifo(p("fifo"), 0o600))
		s.must(os.Symlink("/nowhere", p("dangling")))
		s.must(os.Lchown(p("dangling"), 5, 6))
		s.must(os.Symlink("plain", p("to-dir")))
	})
	s.layer(func(root string) {
		p := at(root)
		s.must(os.RemoveAll(p("gone")))
		s.must(os.RemoveAll(p("opaque")))
		s.must(os.Mkdir(p("opaque"), 0o700))
		s.write(p("opaque/new"), "new")
		s.must(os.Remove(p("dir-to-be")))
		s.must(os.Mkdir(p("dir-to-be"), 0o755))
		s.write(p("dir-to-be/in"), "in")
		s.must(os.RemoveAll(p("file-to-dir")))
		s.write(p("file-to-dir"), "now a file")
		s.must(os.Remove(p("hidden")))
		s.write(p("two"), "no more linked to one")
		s.must(unix.Lsetxattr(p("attributes"), "user.dir", []byte("changed"), 0))
		s.must(unix.Lremovexattr(p("attributes"), "trusted.dir"))
	})
	s.layer(func(root string) {
		p := at(root)
		s.write(p("hidden"), "again")
		s.must(os.Mkdir(p("gone"), 0o711))
		s.must(os.Rename(p("plain/a"), p("kept/a/moved")))
		s.must(os.RemoveAll(p("kept/a/b")))
		s.must(os.WriteFile(p("to-dir/through"), []byte("t"), 0o600))
	})
	want := s.merged()
	if d := cmp.Diff(want, s.flat()); d != "" {
		t.Error(d)
	}
	if !strings.HasPrefix(want["."], "41777 ") || !strings.Contains(want["."], `user.root="r"`) {
		t.Errorf("root of the third layer: %s", want["."])
	}
	for name, there := range map[string]bool{"gone/x": false, "opaque/z": false, "hidden": true, "kept/a/b": false, "plain/through": true} {
		if _, ok := want[name]; ok != there {
			t.Errorf("%s: %v", name, ok)
		}
	}
	if !strings.Contains(want["plain/three"], "same as one") || strings.Contains(want["two"], "same as") {
		t.Errorf("hardlinks: three %s, two %s", want["plain/three"], want["two"])
	}
}

// Whatever is done to a stack of layers, the flat one is as the kernel shows it.
func TestFlattenRandom(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			s := newStack(t)
			r := rand.New(rand.NewPCG(seed, 1))
			for range 12 {
				s.layer(func(root string) {
					for range 40 {
						scramble(root, r)
					}
				})
			}
			want := s.merged()
			if len(want) < 10 {
				t.Fatalf("only %d files", len(want))
			}
			if d := cmp.Diff(want, s.flat()); d != "" {
				t.Error(d)
			}
		})
	}
}

// scramble does something to a small tree. Many things cannot be done to what is there; those are left.
func scramble(root string, r *rand.Rand) {
	name := func() string {
		path := root
		for range 1 + r.IntN(4) {
			path = filepath.Join(path, string(rune('a'+r.IntN(5))))
		}
		return path
	}
	path := name()
	switch r.IntN(12) {
	case 0, 1, 2:
		_ = os.MkdirAll(path, 0o755)
	case 3, 4:
		_ = os.WriteFile(path, []byte(strconv.Itoa(r.IntN(1000))), 0o644)
	case 5, 6:
		_ = os.RemoveAll(path)
	case 7:
		_ = os.RemoveAll(path)
		_ = os.Mkdir(path, 0o700)
	case 8:
		move(path, name())
	case 9:
		_ = os.Link(path, name())
	case 10:
		_ = unix.Lsetxattr(path, "user.x", []byte(strconv.Itoa(r.IntN(1000))), 0)
		_ = os.Chmod(path, os.FileMode(0o700|r.IntN(0o100)))
	case 11:
		_ = os.Symlink("target", path)
	}
}

// move moves a file or directory as mv does, by copy where the kernel refuses.
func move(from, to string) {
	if strings.HasPrefix(to+"/", from+"/") {
		return
	}
	if err := os.Rename(from, to); errors.Is(err, unix.EXDEV) {
		_ = os.CopyFS(to, os.DirFS(from))
		_ = os.RemoveAll(from)
	}
}

// Link keeps the marks of a layer: under the same layers it shows the same.
func TestLink(t *testing.T) {
	s := newStack(t)
	s.layer(func(root string) {
		s.must(os.MkdirAll(filepath.Join(root, "opaque/old"), 0o755))
		s.write(filepath.Join(root, "gone"), "")
	})
	s.layer(func(root string) {
		s.must(os.RemoveAll(filepath.Join(root, "opaque")))
		s.must(os.MkdirAll(filepath.Join(root, "opaque/new"), 0o755))
		s.must(os.Remove(filepath.Join(root, "gone")))
		s.write(filepath.Join(root, "opaque/new/f"), "f")
	})
	want := s.merged()
	copied := s.mkdir("copied")
	s.must(Link(t.Context(), copied, s.layers[0]))
	s.layers[0] = copied
	if d := cmp.Diff(want, s.merged()); d != "" {
		t.Error(d)
	}
	if _, ok := want["gone"]; ok || len(want) != 4 {
		t.Errorf("files: %v", want)
	}
}

func TestFlattenStops(t *testing.T) {
	s := newStack(t)
	s.layer(func(root string) { s.write(filepath.Join(root, "f"), "f") })
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errdefs.ErrAborted)
	if err := Flatten(ctx, s.mkdir("dst"), s.layers); !errdefs.IsAborted(err) {
		t.Errorf("error %v", err)
	}
}

func TestSame(t *testing.T) {
	s := newStack(t)
	a, b := s.mkdir("a"), s.mkdir("b")
	s.write(filepath.Join(a, "f"), "f")
	s.must(unix.Lsetxattr(a, "user.x", []byte("x"), 0))
	check := func(want bool) {
		t.Helper()
		if same, err := Same(b, a); err != nil || same != want {
			t.Errorf("same %v, %v; want %v", same, err, want)
		}
	}
	check(false)
	s.must(CopyRoot(b, a))
	check(true)
	s.must(os.Chmod(b, 0o700))
	check(false)
	s.must(CopyRoot(b, a))
	s.write(filepath.Join(b, "new"), "")
	check(false)
}

// A mount that is in use stays, and says so.
func TestUnmountInUse(t *testing.T) {
	s := newStack(t)
	o := Overlay{Upper: s.mkdir("upper"), Work: s.mkdir("work")}
	target := s.mkdir("target")
	s.must(o.Mount(target, s.mkdir("empty")))
	f, err := os.Create(filepath.Join(target, "open"))
	s.must(err)
	if err := Unmount(target); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	s.must(f.Close())
	s.must(Unmount(target))
	s.must(Unmount(target))
	s.must(os.Mkdir(target, 0o700))
	s.must(o.Mount(target, s.mkdir("empty")))
	s.must(Unmount(target))
	if _, err := os.Stat(filepath.Join(o.Upper, "open")); err != nil {
		t.Error(err)
	}
}

// Old kernels take options on one page, and layers no other way.
func TestMountOld(t *testing.T) {
	s := newStack(t)
	var lower []string
	for i := range 80 {
		dir := s.mkdir(fmt.Sprintf("a-name-as-long-as-those-of-snapshots/%d/fs", i))
		s.write(filepath.Join(dir, fmt.Sprintf("f%d", i)), "")
		lower = append(lower, dir)
	}
	o := Overlay{Lower: lower, Upper: s.mkdir("upper"), Work: s.mkdir("work")}
	target := s.mkdir("target")
	for name, mount := range map[string]func(int, []string) error{"new": o.mountNew, "old": o.mountOld} {
		dir, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
		s.must(err)
		s.must(os.RemoveAll(filepath.Join(o.Work, "work", "incompat")))
		err = mount(dir, lower)
		s.must(unix.Close(dir))
		if errdefs.IsNotImplemented(err) {
			continue
		}
		s.must(err)
		entries, err := os.ReadDir(target)
		s.must(err)
		if len(entries) != len(lower) {
			t.Errorf("%s: %d files", name, len(entries))
		}
		s.must(unix.Unmount(target, 0))
	}
	o.Upper = s.mkdir(strings.Repeat("long/", 60))
	o.Work = s.mkdir(strings.Repeat("long/", 59) + "work")
	s.must(o.Mount(target, s.mkdir("empty")))
	s.must(Unmount(target))
}

func TestAlive(t *testing.T) {
	s := newStack(t)
	o := Overlay{Upper: s.mkdir(`upper,with\marks`), Work: s.mkdir("work")}
	check := func(want bool) {
		t.Helper()
		if alive, err := Alive(o.Upper); err != nil || alive != want {
			t.Errorf("alive %v, %v; want %v", alive, err, want)
		}
	}
	check(false)
	target := s.mkdir("target")
	s.must(o.Mount(target, s.mkdir("empty")))
	check(true)
	f, err := os.Open(target)
	s.must(err)
	s.must(unix.Unmount(target, unix.MNT_DETACH))
	check(true)
	s.must(f.Close())
	check(false)
	if names, err := listXattrs(o.Upper); err != nil || len(names) > 0 {
		t.Errorf("attributes %v, %v", names, err)
	}
}

// A copy is what Flatten makes, in files of its own.
func TestViewCopy(t *testing.T) {
	for seed := range uint64(4) {
		s := newStack(t)
		r := rand.New(rand.NewPCG(seed, 2))
		for range 4 {
			s.layer(func(root string) {
				for range 40 {
					scramble(root, r)
				}
			})
		}
		v, err := OpenView(s.layers)
		s.must(err)
		dst := s.mkdir("copy")
		s.must(v.Copy(s.Context(), dst, CopyOptions{}))
		v.Close()
		if d := cmp.Diff(s.flat(), s.tree(dst)); d != "" {
			t.Error(d)
		}
	}
}
