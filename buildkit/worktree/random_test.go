package worktree

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

var (
	rounds = flag.Int("rounds", 60, "how many histories TestCachesRandom goes through")
	seed   = flag.Uint64("seed", 1, "the first of them")
)

// Whatever jobs do, and whatever they cache, the next job finds what it would if the caches were zipped by
// gitlab-runner, and unzipped over a plain checkout.
func TestCachesRandom(t *testing.T) {
	verdicts := map[Verdict]int{}
	for i := range *rounds {
		t.Run(strconv.FormatUint(*seed+uint64(i), 10), func(t *testing.T) {
			h := &history{node: newNode(t), r: rand.New(rand.NewPCG(*seed+uint64(i), 2)), verdicts: verdicts}
			h.files = h.fresh("files")
			h.caches = make([]*cached, 1+h.r.IntN(2))
			for i := range h.caches {
				h.caches[i] = &cached{archive: h.fresh("archive"), selects: h.selects()}
			}
			for range 5 {
				h.job()
			}
		})
	}
	if *rounds < 60 {
		return
	}
	for _, v := range []Verdict{Empty, Unchanged, UponBase, Fresh, "mounted in layers"} {
		if verdicts[v] == 0 {
			t.Errorf("no cache was %s", v)
		}
	}
	t.Logf("caches: %v", verdicts)
}

// history is the jobs of a project one after the other.
type history struct {
	*node
	r         *rand.Rand
	workspace []string // layers
	files     string   // the same as a plain directory
	caches    []*cached
	verdicts  map[Verdict]int
}

// cached is a cache of the project.
type cached struct {
	layers  []string
	archive string // what a zip would hold
	any     bool
	paths   []string // that were ever selected
	selects func(files map[string]string, tracked map[string]string) Selection
}

// selects chooses what a cache is to hold.
func (h *history) selects() func(files, tracked map[string]string) Selection {
	choice := []string{
		"a", "m", "b/m", "a/b", "./c/", "/builds/group/project/b", "m/m", "c/a", "z",
		"**/x", "a/*/y", "{a,b}/**", "*/z", "m/**", "**/m", "[ab]/?", "a/**/z", "", "../out", "gone",
	}
	patterns := 9
	switch h.r.IntN(3) {
	case 0:
		patterns = len(choice)
	case 1:
		// As most are: one that is never in the workspace.
		choice, patterns = []string{"m", "m", "b/m", "c/a/m"}, 4
	}
	var paths []string
	for range 1 + h.r.IntN(3) {
		paths = append(paths, choice[h.r.IntN(patterns)])
	}
	untracked := h.r.IntN(5) == 0 && patterns > 4
	return func(files, tracked map[string]string) Selection {
		s := Selection{Dir: "/builds/group/project", Paths: paths}
		if h.r.IntN(8) == 0 { // somebody changed .gitlab-ci.yml
			paths = append(slices.Clone(paths), choice[h.r.IntN(patterns)])
		}
		if !untracked {
			return s
		}
		s.Untracked = []byte{}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if _, ok := tracked[name]; !ok && !strings.HasPrefix(files[name], "4") {
				s.Untracked = append(s.Untracked, name+"\x00"...)
			}
		}
		return s
	}
}

// job has a checkout, restores the caches, does its work, and saves them.
func (h *history) job() {
	h.Helper()
	h.commit()
	plain := h.fresh("plain")
	copyOver(h.TB, plain, h.files)
	tracked := h.look(h.files, false)
	lower := slices.Clone(h.workspace)
	bases := make([][]string, len(h.caches))
	for i, c := range h.caches {
		if c.any {
			copyOver(h.TB, plain, c.archive)
		}
		if len(c.layers) == 0 {
			continue
		}
		bases[i] = c.layers
		if over, err := Overlaps(lower, Selection{Dir: "/builds/group/project", Paths: c.paths}); err != nil {
			h.Fatal(err)
		} else if over && len(c.layers) > 1 {
			flat := h.fresh("flat")
			h.must(layer.Flatten(h.Context(), flat, c.layers))
			bases[i] = []string{flat}
		} else if len(c.layers) > 1 {
			h.verdicts["mounted in layers"]++
		}
		lower = slices.Concat(bases[i], lower)
	}
	o := h.overlay(lower...)
	h.mount(o)
	h.same("restored", plain)
	for range h.r.IntN(25) {
		h.work(plain, h.tree())
	}
	h.same("after work", plain)
	for i, c := range h.caches {
		o = h.save(o, c, bases[i], c.selects(h.look(plain, false), tracked), plain)
	}
	h.unmount(o)
}

func (h *history) same(when, plain string) {
	h.Helper()
	if d := cmp.Diff(h.look(plain, false), h.look(h.tree(), false)); d != "" {
		h.Fatalf("%s (- plain, + overlay):\n%s", when, d)
	}
}

// commit changes the workspace.
func (h *history) commit() {
	h.Helper()
	if h.r.IntN(3) == 0 && len(h.workspace) > 0 {
		return
	}
	o := h.overlay(h.workspace...)
	h.mount(o)
	for range 1 + h.r.IntN(15) {
		h.checkout(h.files, h.tree())
	}
	h.same("workspace", h.files)
	h.unmount(o)
	h.workspace = append([]string{o.Upper}, h.workspace...)
}

// name names a file or a directory. Names tell which, but for those that are never in the workspace: there unzip
// would fail.
func (h *history) name(dirs, files string) string {
	var names []string
	for range h.r.IntN(4) {
		names = append(names, string(dirs[h.r.IntN(len(dirs))]))
	}
	return filepath.Join(append(names, string(files[h.r.IntN(len(files))]))...)
}

func (h *history) checkout(roots ...string) {
	name, dir := h.name("abc", "xyz"), h.name("abc", "abc")
	text := strconv.Itoa(h.r.IntN(1000))
	op := h.r.IntN(6)
	for _, root := range roots {
		switch path := filepath.Join(root, name); op {
		case 0:
			_ = os.RemoveAll(path)
		case 1:
			_ = os.RemoveAll(filepath.Join(root, dir))
		default:
			_ = os.MkdirAll(filepath.Dir(path), 0o755)
			_ = os.WriteFile(path, []byte(text), 0o644)
		}
	}
}

// work does something at random to each tree.
func (h *history) work(roots ...string) {
	file, dir, other := h.name("abcm", "xyzm"), h.name("abcm", "abcm"), h.name("abcm", "xyzm")
	otherDir := h.name("abcm", "abcm")
	text := strconv.Itoa(h.r.IntN(1000))
	op := h.r.IntN(17)
	for _, root := range roots {
		at := func(name string) string { return filepath.Join(root, name) }
		switch op {
		case 0, 1, 2, 3:
			_ = os.MkdirAll(filepath.Dir(at(file)), 0o755)
			_ = os.WriteFile(at(file), []byte(text), 0o644)
		case 4:
			_ = os.MkdirAll(at(dir), 0o755)
		case 5, 6:
			_ = os.RemoveAll(at(file))
		case 7, 8:
			_ = os.RemoveAll(at(dir))
		case 9, 10: // npm ci
			_ = os.RemoveAll(at(dir))
			_ = os.MkdirAll(at(dir), 0o755)
			_ = os.WriteFile(filepath.Join(at(dir), "x"), []byte(text), 0o644)
		case 11:
			move(at(dir), at(otherDir), true)
		case 12:
			move(at(file), at(other), false)
		case 13:
			_ = os.Link(at(file), at(other))
		case 14:
			_ = os.Symlink("nowhere", at(file))
		case 15:
			if info, err := os.Lstat(at(file)); err == nil && info.Mode().IsRegular() {
				_ = unix.Lsetxattr(at(file), "user.x", []byte(text), 0)
				_ = os.Chmod(at(file), 0o640)
			}
		case 16: // rm -rf within, and again
			_ = os.RemoveAll(at(dir))
			_ = os.MkdirAll(filepath.Join(at(dir), "a"), 0o755)
		}
	}
}

// move moves a file or directory to where nothing is, as mv does.
func move(from, to string, dir bool) {
	if info, err := os.Lstat(from); err != nil || info.IsDir() != dir {
		return
	}
	if strings.HasPrefix(to+"/", from+"/") {
		return
	}
	if _, err := os.Lstat(to); err == nil {
		return
	}
	if err := os.Rename(from, to); !errors.Is(err, unix.EXDEV) {
		return
	}
	v, err := layer.OpenView([]string{from})
	if err != nil {
		panic(err)
	}
	defer v.Close()
	if err := errors.Join(os.Mkdir(to, 0o755), v.Copy(context.Background(), to, layer.CopyOptions{}), os.RemoveAll(from)); err != nil {
		panic(err)
	}
}

// save saves a cache both ways, and returns the project directory's overlay after.
func (h *history) save(o layer.Overlay, c *cached, base []string, s Selection, plain string) layer.Overlay {
	h.Helper()
	before := h.look(h.tree(), true)
	archive, some := h.zip(plain, s)
	inUse := h.r.IntN(3) == 0
	if !inUse {
		h.unmount(o)
	}
	stack, err := stackOf(o, base)
	h.must(err)
	p, err := MakePlan(h.Context(), stack, s)
	h.must(err)
	h.verdicts[p.Verdict]++
	says := fmt.Sprintf("cache %q with %d untracked of %d layers is %s, quick: %v, in use: %v",
		s.Paths, strings.Count(string(s.Untracked), "\x00"), len(base), p.Verdict, p.quick, inUse)
	if (p.Verdict == Empty) == some {
		h.Fatalf("%s; the archive has files: %v", says, some)
	}
	dst := h.fresh("layer")
	if p.Verdict == UponBase || p.Verdict == Fresh {
		if inUse {
			h.must(p.Copy(h.Context(), dst))
		} else {
			h.must(p.Take(h.Context(), dst))
			h.apart(dst, o.Upper)
			o.Lower = p.Lower(dst)
		}
	}
	switch p.Verdict {
	case UponBase:
		c.paths = append(c.paths, s.Paths...)
		c.layers = slices.Concat([]string{dst}, c.layers)
	case Fresh:
		c.layers = []string{dst}
		h.unmarked(dst)
	}
	if !inUse {
		h.mount(o)
	}
	if d := cmp.Diff(before, h.look(h.tree(), true)); d != "" {
		h.Fatalf("%s; the job sees (- before, + after):\n%s", says, d)
	}
	if some {
		c.archive, c.any = archive, true
	}
	if len(c.layers) > 0 {
		flat := h.fresh("flat")
		h.must(layer.Flatten(h.Context(), flat, c.layers))
		if d := cmp.Diff(h.look(c.archive, false), h.look(flat, false)); d != "" {
			h.Fatalf("%s; it holds (- archive, + layers):\n%s", says, d)
		}
	}
	return o
}

// apart makes sure that the job cannot write to what was published.
func (h *history) apart(dst, upper string) {
	h.Helper()
	own := map[uint64]string{}
	inodes := func(root string, each func(path string, st *unix.Stat_t)) {
		h.must(filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			h.must(err)
			var st unix.Stat_t
			h.must(unix.Lstat(path, &st))
			each(path, &st)
			return nil
		}))
	}
	inodes(upper, func(path string, st *unix.Stat_t) {
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			own[st.Ino] = path
		}
	})
	inodes(dst, func(path string, st *unix.Stat_t) {
		if name, ok := own[st.Ino]; ok {
			h.Fatalf("%s is published and the job's %s", path, name)
		}
	})
}

// unmarked makes sure that a layer hides nothing.
func (h *history) unmarked(dst string) {
	h.Helper()
	h.must(filepath.WalkDir(dst, func(path string, entry fs.DirEntry, err error) error {
		h.must(err)
		var st unix.Stat_t
		h.must(unix.Lstat(path, &st))
		opaque := false
		if entry.IsDir() {
			opaque, err = layer.Opaque(path)
		}
		if err != nil || opaque || layer.Whiteout(&st) {
			h.Fatalf("%s hides something: %v", path, err)
		}
		return nil
	}))
}

// zip selects what gitlab-runner's cache-archiver would, into a directory.
func (h *history) zip(plain string, s Selection) (archive string, some bool) {
	h.Helper()
	var names []string
	for _, path := range s.Paths {
		rel, err := s.relative(path)
		if err != nil || path == "" {
			continue
		}
		matches, err := doublestar.Glob(os.DirFS(plain), rel, doublestar.WithNoFollow())
		h.must(err)
		if !strings.ContainsAny(rel, meta) {
			// A link that leads nowhere is a file to us: nobody outside of the container can tell.
			if _, err := os.Lstat(filepath.Join(plain, rel)); err == nil {
				matches = []string{rel}
			}
		}
		for _, match := range matches {
			h.must(filepath.Walk(filepath.Join(plain, match), func(path string, _ fs.FileInfo, err error) error {
				h.must(err)
				name, err := filepath.Rel(plain, path)
				h.must(err)
				names = append(names, name)
				return nil
			}))
		}
	}
	for name := range strings.SplitSeq(string(s.Untracked), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	archive = h.fresh("archive")
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name == "." {
			continue
		}
		h.must(os.MkdirAll(filepath.Dir(filepath.Join(archive, name)), 0o755))
		copyOne(h.TB, filepath.Join(archive, name), filepath.Join(plain, name))
		some = true
	}
	return archive, some
}

// copyOver copies a tree over another, as unzip does.
func copyOver(t testing.TB, dst, src string) {
	t.Helper()
	err := filepath.WalkDir(src, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if rel != "." {
			copyOne(t, filepath.Join(dst, rel), path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyOne(t testing.TB, dst, src string) {
	t.Helper()
	info, err := os.Lstat(src)
	if err == nil && info.IsDir() {
		err = os.Mkdir(dst, info.Mode())
		if errors.Is(err, os.ErrExist) {
			err = nil
		}
	} else if err == nil {
		_ = os.Remove(dst)
		err = copyFile(dst, src)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(dst, src string) error {
	v, err := layer.OpenView([]string{filepath.Dir(src)})
	if err != nil {
		return err
	}
	defer v.Close()
	e, err := v.Lookup(filepath.Base(src))
	if err != nil {
		return err
	}
	return e.Copy(dst)
}
