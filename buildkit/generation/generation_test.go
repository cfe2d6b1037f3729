package generation_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/buildkit/generation"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// fixture is an engine with jobs that fail the test when they fail.
type fixture struct {
	testing.TB
	*enginetest.Engine
}

func newFixture(tb testing.TB) fixture { return fixture{tb, enginetest.New(tb)} }

func (f fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// clone makes and mounts a job's clone.
func (f fixture) clone(key, job string) *generation.Clone {
	f.Helper()
	c, err := f.Generations().Clone(f.Context(), key, job)
	f.must(err)
	f.must(c.Mount())
	return c
}

func (f fixture) publish(c *generation.Clone) generation.Info {
	f.Helper()
	info, _, err := c.Publish(f.Context())
	f.must(err)
	return info
}

// job publishes one file.
func (f fixture) job(key, name, text string) generation.Info {
	f.Helper()
	c := f.clone(key, "job "+text)
	f.write(c, name, text)
	return f.publish(c)
}

func (f fixture) write(c *generation.Clone, name, text string) {
	f.Helper()
	path := filepath.Join(c.Path(), name)
	f.must(os.MkdirAll(filepath.Dir(path), 0o755))
	f.must(os.WriteFile(path, []byte(text), 0o644))
}

func (f fixture) read(c *generation.Clone, name string) string {
	f.Helper()
	b, err := os.ReadFile(filepath.Join(c.Path(), name))
	if os.IsNotExist(err) {
		return "none"
	}
	f.must(err)
	return string(b)
}

// newest reads a file as the next job would.
func (f fixture) newest(key, name string) string {
	f.Helper()
	c := f.clone(key, "reader")
	defer func() { f.must(c.Discard(f.Context())) }()
	return f.read(c, name)
}

func (f fixture) expect(what, got, want string) {
	f.Helper()
	if got != want {
		f.Errorf("%s is %q, want %q", what, got, want)
	}
}

func TestPublish(t *testing.T) {
	f := newFixture(t)
	if _, ok := f.Generations().Newest("k"); ok {
		t.Error("a generation of nothing")
	}
	first := f.clone("k", "first")
	if base, ok := first.Base(); ok {
		t.Errorf("empty clone is of %+v", base)
	}
	f.must(os.Chmod(first.Path(), 0o777|os.ModeSticky))
	f.must(unix.Lsetxattr(first.Path(), "user.x", []byte("root"), 0))
	f.write(first, "a", "1")
	f.write(first, "dir/b", "1")
	info := f.publish(first)
	if info.Number != 1 || info.Depth != 1 || info.Job != "first" || info.Base != "" {
		t.Errorf("published %+v", info)
	}
	if err := first.Mount(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mount what was published: %v", err)
	}

	one, two := f.clone("k", "one"), f.clone("k", "two")
	if base, _ := one.Base(); base.ID != info.ID {
		t.Errorf("clone of %+v", base)
	}
	f.write(one, "a", "one")
	f.must(os.Remove(filepath.Join(two.Path(), "a")))
	f.expect("what two deleted, to one,", f.read(one, "a"), "one")
	f.expect("what one wrote, to a new job,", f.newest("k", "a"), "1")
	if n := f.publish(two).Number; n != 2 {
		t.Errorf("number %d", n)
	}
	f.expect("what two deleted, to the next,", f.newest("k", "a"), "none")
	if n := f.publish(one).Number; n != 3 {
		t.Errorf("number %d", n)
	}
	f.expect("what who published last wrote", f.newest("k", "a"), "one")
	f.expect("what all have", f.newest("k", "dir/b"), "1")

	c := f.clone("k", "looks")
	var st unix.Stat_t
	f.must(unix.Stat(c.Path(), &st))
	if st.Mode&0o7777 != 0o1777 {
		t.Errorf("root has mode %o after three generations", st.Mode&0o7777)
	}
	value := make([]byte, 10)
	n, err := unix.Lgetxattr(c.Path(), "user.x", value)
	f.must(err)
	f.expect("root's attribute", string(value[:n]), "root")
	same, changed, err := c.Publish(t.Context())
	if err != nil || changed || same.Number != 3 {
		t.Errorf("published without a change: %+v, %v, %v", same, changed, err)
	}
	f.must(c.Discard(t.Context()))
	if list := f.Generations().List("k"); len(list) != 3 || list[2].Job != "one" {
		t.Errorf("generations %+v", list)
	}
	if keys := f.Generations().Keys(); len(keys) != 1 || keys[0] != "k" {
		t.Errorf("keys %q", keys)
	}
}

// Keys of BuildKit's index end in "::"; none may pass for another.
func TestSizeAndNote(t *testing.T) {
	f := newFixture(t)
	c := f.clone("k", "first")
	f.write(c, "a", strings.Repeat("a", 1<<20))
	c.Note("commit 1")
	first := f.publish(c)
	if first.Size < 1<<20 || first.Note != "commit 1" {
		t.Errorf("published %+v", first)
	}
	c = f.clone("k", "second")
	f.write(c, "b", strings.Repeat("b", 1<<20))
	second := f.publish(c)
	if grown := second.Size - first.Size; grown < 1<<20 || grown > 1<<21 || second.Note != "" {
		t.Errorf("published %+v upon %+v", second, first)
	}
	f.Restart(buildkit.Held{})
	if again := f.Generations().List("k")[0]; again.Size != first.Size || again.Note != first.Note {
		t.Errorf("after a restart: %+v, want %+v", again, first)
	}
}

// What is published of an empty clone takes the place of all before.
func TestEmpty(t *testing.T) {
	f := newFixture(t)
	f.job("k", "a", "1")
	c, err := f.Generations().Empty(t.Context(), "k", "job")
	f.must(err)
	f.must(c.Mount())
	f.write(c, "b", "2")
	if info := f.publish(c); info.Number != 2 || info.Depth != 1 || info.Base != "" {
		t.Errorf("published %+v", info)
	}
	c = f.clone("k", "reader")
	if a, b := f.read(c, "a"), f.read(c, "b"); a != "none" || b != "2" {
		t.Errorf("a is %s, b is %s", a, b)
	}
	f.must(c.Discard(t.Context()))
}

func TestKeysApart(t *testing.T) {
	f := newFixture(t)
	f.job("a::b", "f", "a::b")
	f.job("a", "f", "a")
	f.job("a:", "f", "a:")
	for _, key := range []string{"a::b", "a", "a:"} {
		f.expect(key, f.newest(key, "f"), key)
	}
	f.expect("another", f.newest("a::", "f"), "none")
	f.Restart(buildkit.Held{})
	f.expect("a, after a restart,", f.newest("a", "f"), "a")
}

// A job that branches off another key's generation leaves that as it is.
func TestCloneOf(t *testing.T) {
	f := newFixture(t)
	base := f.job("main", "f", "main")
	c, err := f.Generations().CloneOf(t.Context(), base, "branch", "job")
	f.must(err)
	info, changed, err := c.Publish(t.Context())
	if err != nil || !changed || info.Key != "branch" || info.Number != 1 || info.Depth != 2 {
		t.Errorf("published %+v, %v, %v", info, changed, err)
	}
	f.expect("branch", f.newest("branch", "f"), "main")
	if list := f.Generations().List("main"); len(list) != 1 {
		t.Errorf("main has %+v", list)
	}
}

func TestFill(t *testing.T) {
	f := newFixture(t)
	f.job("k", "dir/old", "old")
	upper := filepath.Join(f.Config.Root, "upper")
	f.must(os.MkdirAll(filepath.Join(upper, "dir"), 0o750))
	f.must(os.WriteFile(filepath.Join(upper, "dir", "new"), []byte("new"), 0o600))
	f.must(unix.Mknod(filepath.Join(upper, "dir", "old"), unix.S_IFCHR, 0))
	c, err := f.Generations().Clone(t.Context(), "k", "job")
	f.must(err)
	f.must(c.Fill(t.Context(), upper))
	f.publish(c)
	f.expect("what the layer adds", f.newest("k", "dir/new"), "new")
	f.expect("what the layer takes", f.newest("k", "dir/old"), "none")

	f.must(unix.Lsetxattr(upper, "trusted.overlay.opaque", []byte("y"), 0))
	c, err = f.Generations().Clone(t.Context(), "k", "job")
	f.must(err)
	if err := c.Fill(t.Context(), upper); !errdefs.IsInvalidArgument(err) {
		t.Errorf("fill with an opaque layer: %v", err)
	}
	f.must(c.Discard(t.Context()))
	f.must(c.Discard(t.Context()))
}

func TestRollback(t *testing.T) {
	f := newFixture(t)
	for _, text := range []string{"1", "2", "3"} {
		f.job("k", "f", text)
	}
	ofThree := f.clone("k", "of three")
	f.write(ofThree, "f", "of three")
	if _, err := f.Generations().Rollback(t.Context(), "k", 9); !errdefs.IsNotFound(err) {
		t.Errorf("rollback to nothing: %v", err)
	}
	info, err := f.Generations().Rollback(t.Context(), "k", 1)
	if err != nil || info.Number != 1 || info.Withdrawn {
		t.Errorf("rolled back to %+v, %v", info, err)
	}
	f.expect("after the rollback", f.newest("k", "f"), "1")
	if _, _, err := ofThree.Publish(t.Context()); !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "generation 3") {
		t.Errorf("publish what came of a withdrawn generation: %v", err)
	}
	f.expect("after its clone's end", f.newest("k", "f"), "1")
	f.Restart(buildkit.Held{})
	f.expect("after a restart", f.newest("k", "f"), "1")
	if n := f.job("k", "f", "4").Number; n != 4 {
		t.Errorf("number %d after a rollback", n)
	}
	f.expect("the next generation", f.newest("k", "f"), "4")
	if _, err := f.Generations().Rollback(t.Context(), "k", 2); err != nil {
		t.Error(err)
	}
	f.expect("rolled to a withdrawn one", f.newest("k", "f"), "2")
}

func TestRemove(t *testing.T) {
	f := newFixture(t)
	f.job("k", "f", "1")
	f.job("k", "f", "2")
	f.must(f.Generations().Remove(t.Context(), "k", false, 1))
	f.must(f.Generations().Collect(t.Context()))
	f.expect("upon a removed layer", f.newest("k", "f"), "2")
	kept := f.clone("k", "kept")
	f.write(kept, "f", "kept")
	f.must(f.Generations().Remove(t.Context(), "k", true))
	f.must(f.Generations().Collect(t.Context()))
	f.expect("what a job has of a removed cache", f.read(kept, "f"), "kept")
	f.expect("a removed cache", f.newest("k", "f"), "none")
	if _, _, err := kept.Publish(t.Context()); !errdefs.IsAborted(err) {
		t.Errorf("publish what came of a removed cache: %v", err)
	}
	f.must(kept.Discard(t.Context()))
	f.must(f.Generations().Collect(t.Context()))
	if n, err := f.Generations().Records(t.Context(), "k"); err != nil || n != 0 {
		t.Errorf("%d layers left, %v", n, err)
	}
}

// A client of BuildKit prunes all; caches stay.
func TestPrune(t *testing.T) {
	f := newFixture(t)
	f.job("k", "f", "1")
	f.job("k", "f", "2")
	c := f.clone("k", "job")
	f.must(f.Worker().Prune(t.Context(), nil, client.PruneInfo{All: true}))
	f.must(f.Worker().PruneCacheMounts(t.Context(), map[string]bool{"k": true}))
	f.expect("a clone", f.read(c, "f"), "2")
	f.publish(c)
	f.expect("the newest", f.newest("k", "f"), "2")
}

func TestRetake(t *testing.T) {
	f := newFixture(t)
	f.job("k", "f", "1")
	lives, dies := f.clone("k", "lives"), f.clone("k", "dies")
	f.write(lives, "f", "lives")
	f.write(dies, "f", "dies")
	before, err := os.Stat(lives.Path())
	f.must(err)
	// What a job has open it goes on writing to.
	open, err := os.Create(filepath.Join(lives.Path(), "open"))
	f.must(err)
	_, err = open.WriteString("before ")
	f.must(err)

	gone := generation.Record{ID: "gone", Key: "k", Job: "gone"}
	taken := f.Restart(buildkit.Held{Clones: []generation.Record{lives.Record(), gone}})
	if len(taken.Clones) != 1 || len(taken.Lost.Clones) != 1 || taken.Lost.Clones[0].ID != "gone" {
		t.Fatalf("taken back: %+v", taken)
	}
	_, err = open.WriteString("after")
	f.must(err)
	f.must(open.Close())
	again := taken.Clones[0]
	f.must(again.Mount())
	after, err := os.Stat(again.Path())
	f.must(err)
	if before.Sys() == nil || !os.SameFile(before, after) {
		t.Error("the clone of a job that lives was mounted again")
	}
	if _, err := os.Stat(dies.Path()); !os.IsNotExist(err) {
		t.Errorf("mount of a job that died: %v", err)
	}
	info := f.publish(again)
	if info.Job != "lives" || info.Number != 2 {
		t.Errorf("published %+v", info)
	}
	f.expect("what lived", f.newest("k", "f"), "lives")
	f.expect("what was open", f.newest("k", "open"), "before after")
	usage, err := f.Worker().CacheManager().DiskUsage(t.Context(), client.DiskUsageInfo{Filter: []string{"type==" + string(generation.TypeClone)}})
	f.must(err)
	if len(usage) != 0 {
		t.Errorf("clones left: %+v", usage[0])
	}
}

// What a job was publishing when berthd was killed is published, or still its own to publish again. If the job is gone,
// so is that.
func TestKilledAmidPublish(t *testing.T) {
	for _, step := range generation.PublishSteps {
		t.Run(step, func(t *testing.T) {
			killed := func(key string) (fixture, generation.Record) {
				f := newFixture(t)
				f.job(key, "a", "0")
				c := f.clone(key, "job")
				f.write(c, "a", "1")
				c.Note("commit 1")
				f.must(c.Unmount())
				f.must(c.PublishUntil(t.Context(), step))
				return f, c.Record()
			}
			t.Run("job lives", func(t *testing.T) {
				f, r := killed("k")
				taken := f.Restart(buildkit.Held{Clones: []generation.Record{r}})
				if len(taken.Clones)+len(taken.Lost.Clones) != 1 {
					t.Fatalf("taken back: %+v", taken)
				}
				for _, c := range taken.Clones {
					c.Note("commit 1")
					f.publish(c)
				}
				info, ok := f.Generations().Published(r)
				if !ok || info.Number != 2 || info.Note != "commit 1" || info.Size == 0 {
					t.Errorf("published: %v, %+v", ok, info)
				}
				// Once, and for good.
				f.Restart(buildkit.Held{Clones: []generation.Record{r}})
				list := f.Generations().List("k")
				if len(list) != 2 || list[1].ID != info.ID || list[1].Number != 2 {
					t.Errorf("generations after another restart: %+v, want the second to be %+v", list, info)
				}
				f.expect("the newest", f.newest("k", "a"), "1")
			})
			t.Run("what it began with was withdrawn", func(t *testing.T) {
				f, r := killed("k")
				f.must(f.Generations().Remove(t.Context(), "k", true))
				taken := f.Restart(buildkit.Held{Clones: []generation.Record{r}})
				for _, c := range taken.Clones {
					if _, _, err := c.Publish(t.Context()); !errdefs.IsAborted(err) {
						t.Errorf("publish: %v", err)
					}
					f.must(c.Discard(t.Context()))
				}
				if list := f.Generations().List("k"); len(list) != 0 {
					t.Errorf("generations %+v", list)
				}
			})
			t.Run("job is gone", func(t *testing.T) {
				f, _ := killed("k")
				f.Restart(buildkit.Held{})
				f.expect("the newest", f.newest("k", "a"), "0")
				f.must(f.Generations().Remove(t.Context(), "k", false))
				f.must(f.Generations().Collect(t.Context()))
				left, err := f.Unguarded().CacheManager().DiskUsage(t.Context(), client.DiskUsageInfo{})
				f.must(err)
				if len(left) > 0 {
					t.Errorf("%d records are left, the first is %+v", len(left), left[0])
				}
			})
		})
	}
}

// A clone whose layer went before the crash that left its record is lost, and no reason not to start.
func TestRetakeWithoutLayer(t *testing.T) {
	f := newFixture(t)
	f.job("k", "a", "1")
	c, err := f.Generations().Clone(t.Context(), "k", "job")
	f.must(err)
	r := c.Record()
	f.must(f.Close())
	f.Engine.Engine = nil
	f.RemoveSnapshot(r.ID)
	taken := f.Open(buildkit.Held{Clones: []generation.Record{r}})
	if len(taken.Clones) != 0 || len(taken.Lost.Clones) != 1 {
		t.Errorf("taken back: %+v", taken)
	}
	again := f.clone("k", "next")
	if got := f.read(again, "a"); got != "1" {
		t.Errorf("a is %s", got)
	}
	f.must(again.Discard(t.Context()))
}

// Data that was not on disk when the host went down is not served.
func TestCrash(t *testing.T) {
	f := newFixture(t)
	f.job("k", "f", "1")
	f.job("k", "f", "2")
	f.await("generations on disk", func() bool {
		for _, info := range f.Generations().List("k") {
			if info.Boot != "" {
				return false
			}
		}
		return true
	})
	f.Restart(buildkit.Held{})
	f.expect("what was on disk", f.newest("k", "f"), "2")
	f.must(f.Generations().Crash(t.Context(), "k", 2))
	f.Restart(buildkit.Held{})
	f.expect("what was before", f.newest("k", "f"), "1")
}

func (f fixture) await(what string, is func() bool) {
	f.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.Fatalf("%s: not within 30 seconds", what)
		}
	}
}

func TestFlatten(t *testing.T) {
	f := newFixture(t)
	f.job("k", "dir/first", "first")
	old := f.clone("k", "slow")
	var last string
	for n := range generation.FlattenAt + 3 {
		last = fmt.Sprint(n)
		c := f.clone("k", "job "+last)
		f.write(c, "dir/"+last, last)
		f.must(os.RemoveAll(filepath.Join(c.Path(), "opaque")))
		f.write(c, "opaque/"+last, last)
		f.publish(c)
	}
	f.await("flat generation", func() bool {
		info, _ := f.Generations().Newest("k")
		return info.Depth < generation.FlattenAt
	})
	check := func() {
		t.Helper()
		f.expect("the first layer's", f.newest("k", "dir/first"), "first")
		for n := range generation.FlattenAt + 3 {
			f.expect("a layer's", f.newest("k", fmt.Sprint("dir/", n)), fmt.Sprint(n))
		}
		f.expect("the last", f.newest("k", "opaque/"+last), last)
		f.expect("a hidden", f.newest("k", "opaque/1"), "none")
	}
	check()
	taken := f.Restart(buildkit.Held{Clones: []generation.Record{old.Record()}})
	check()
	// Only what the flat one needs is left when the rest is forgotten.
	list := f.Generations().List("k")
	for _, info := range list[:len(list)-1] {
		f.must(f.Generations().Remove(t.Context(), "k", false, info.Number))
	}
	f.must(f.Generations().Collect(t.Context()))
	check()
	newest, _ := f.Generations().Newest("k")
	// The slow job's clone needs the first.
	if n, err := f.Generations().Records(t.Context(), "k"); err != nil || n > newest.Depth+1 {
		t.Errorf("%d layers left of one of depth %d, %v", n, newest.Depth, err)
	}
	f.expect("what the slow job has", f.read(taken.Clones[0], "dir/first"), "first")
	f.must(taken.Clones[0].Discard(t.Context()))
}

// A chain that grows faster than it is flattened in the background is flattened by who publishes.
func TestFlattenNow(t *testing.T) {
	f := newFixture(t)
	base := f.job("0", "f0", "0")
	deepest := 0
	for n := 1; n < generation.FlattenNow+3; n++ {
		// Each has a key of its own, and so is the base of the next whatever the background does.
		key := fmt.Sprint(n)
		c, err := f.Generations().CloneOf(t.Context(), base, key, "job")
		f.must(err)
		f.must(c.Mount())
		f.write(c, "f"+key, key)
		base = f.publish(c)
		deepest = max(deepest, base.Depth)
	}
	if deepest != generation.FlattenNow-1 || base.Depth > 4 {
		t.Errorf("the deepest has %d layers, the last %d", deepest, base.Depth)
	}
	for n := range generation.FlattenNow + 3 {
		f.expect("a file", f.newest(base.Key, fmt.Sprint("f", n)), fmt.Sprint(n))
	}
}

// Many jobs at once: nobody waits, and each generation is what exactly one job wrote, all of it.
func TestManyJobs(t *testing.T) {
	f := newFixture(t)
	const jobs, files = 60, 20
	var wg sync.WaitGroup
	slots := make(chan struct{}, 12)
	for n := range jobs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := f.writeAll(t.Context(), fmt.Sprint("job ", n), files); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list := f.Generations().List("k")
	if len(list) != jobs {
		t.Errorf("%d generations of %d jobs", len(list), jobs)
	}
	for i, info := range list {
		if info.Number != i+1 {
			t.Errorf("generation %d has number %d", i+1, info.Number)
		}
		f.whole(info, files)
	}
}

func (f fixture) writeAll(ctx context.Context, job string, files int) error {
	c, err := f.Generations().Clone(ctx, "k", job)
	if err != nil {
		return err
	}
	if err := c.Mount(); err != nil {
		return err
	}
	for n := range files {
		if err := os.WriteFile(filepath.Join(c.Path(), fmt.Sprint(n)), []byte(job), 0o644); err != nil {
			return err
		}
	}
	_, _, err = c.Publish(ctx)
	return err
}

// whole makes sure that a generation is its job's alone.
func (f fixture) whole(info generation.Info, files int) {
	f.Helper()
	c, err := f.Generations().CloneOf(f.Context(), info, "reader", "reader")
	f.must(err)
	f.must(c.Mount())
	for n := range files {
		if got := f.read(c, fmt.Sprint(n)); got != info.Job {
			f.Errorf("file %d of generation %d is of %q, want %q", n, info.Number, got, info.Job)
		}
	}
	f.must(c.Discard(f.Context()))
}
