package bench

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/test/runner"
)

// Targets for `cache:`, in milliseconds. What a job changed may take the more
// the more it is.
const (
	targetRestore    = 50
	targetUnchanged  = 50
	targetChanged    = 50
	targetChangedOne = 0.1 // of each changed file
)

// large is what else BENCH_LARGE measures, which takes minutes.
var large = os.Getenv("BENCH_LARGE") != ""

// trees are what caches look like. No file is compressible.
var trees = []struct {
	name  string
	files int
	size  int // of each
	large bool
}{
	{"10 MB", 100, 100 << 10, false},
	{"1 GiB", 1024, 1 << 20, false},
	{"5 GiB", 5 * 1024, 1 << 20, true},
	{"1,000 files", 1000, 1 << 10, false},
	{"100,000 files", 100_000, 1 << 10, false},
}

// BenchmarkCache is what restoring and saving `cache:` takes, by berthd and by
// the commands of gitlab-runner and tar.
func BenchmarkCache(b *testing.B) {
	s := newSamples()
	rounds := 0
	for _, tree := range trees {
		b.Run(strings.ReplaceAll(tree.name, " ", "-"), func(b *testing.B) {
			needBed(b)
			if tree.large && !large {
				b.Skip("set BENCH_LARGE to measure it")
			}
			c := newCached(b)
			j := c.begin()
			j.checkout()
			writeFiles(b, j.deps(), tree.files, tree.size, 1)
			s.add(tree.name, "first", j.save())
			j.release()
			for rounds = 0; b.Loop(); rounds++ {
				j := c.begin()
				s.add(tree.name, "restore", j.checkout())
				s.add(tree.name, "unchanged", j.save())
				j.release()
				j = c.begin()
				s.add(tree.name, "restore", j.checkout())
				writeFiles(b, j.deps(), tree.files, tree.size, 100)
				s.add(tree.name, "changed", j.save())
				j.release()
			}
			archive(b, s, tree.name, c)
			for _, column := range []string{"restore", "unchanged", "changed"} {
				s.metric(b, tree.name, column)
			}
		})
	}
	if len(s.rows) > 0 {
		reportCaches(s, rounds)
	}
}

func reportCaches(s *samples, rounds int) {
	program := "the stand-in's archiver"
	if runner.Real() != "" {
		program = "gitlab-runner's archiver"
	}
	section("cache: restored and saved: medians of %d rounds, archives of one", rounds)
	note("By berthd, over its API: all of the step after get_sources, and all of that in place of archive_cache. Beside it\n" +
		program + " (zip) and tar, of the same files on the same disk. changed: every hundredth file.")
	rows := [][]string{{
		"ms", "restore", "unchanged", "1% changed", "first save", "unzip", "zip", "untar", "tar", "unzip/restore", "zip/changed", "tar/changed",
	}}
	for _, tree := range trees {
		row := tree.name
		restore, unchanged, changed := s.median(row, "restore"), s.median(row, "unchanged"), s.median(row, "changed")
		if restore == 0 {
			continue
		}
		target := targetChanged + targetChangedOne*float64(tree.files)/100
		rows = append(rows, []string{
			row, mark(restore, targetRestore), mark(unchanged, targetUnchanged), mark(changed, target), number(s.median(row, "first"), 1),
			number(s.median(row, "unzip"), 0), number(s.median(row, "zip"), 0), number(s.median(row, "untar"), 0), number(s.median(row, "tar"), 0),
			number(ratio(s.median(row, "unzip"), restore), 0), number(ratio(s.median(row, "zip"), changed), 0), number(ratio(s.median(row, "tar"), changed), 0),
		})
		judge("restore of "+row+", ms", restore, targetRestore)
		judge("save of "+row+" unchanged, ms", unchanged, targetUnchanged)
		judge("save of "+row+" 1% changed, ms", changed, target)
	}
	table(rows)
}

// mark says where a figure misses its target.
func mark(v, target float64) string {
	if v > target {
		return number(v, 1) + " MISS"
	}
	return number(v, 1)
}

// cached is a project with a cache on the node.
type cached struct {
	b    *testing.B
	path string
	self api.Process
}

var cachedProjects, cachedJobs atomic.Int64

func newCached(b *testing.B) *cached {
	b.Helper()
	self, err := api.FindProcess(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	c := &cached{b: b, path: fmt.Sprintf("group/cached%d", cachedProjects.Add(1)), self: self}
	b.Cleanup(func() {
		if err := forget(context.Background(), c.path); err != nil {
			b.Error(err)
		}
	})
	return c
}

// forget removes what the node keeps of a project.
func forget(ctx context.Context, project string) error {
	list, err := bed.node.Client.Caches(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.Project != project || len(c.Generations) == 0 {
			continue
		}
		if err := bed.node.Client.RemoveCache(ctx, api.CacheChange{Key: c.Key}); err != nil {
			return err
		}
	}
	return nil
}

// cachedJob is a job as berthd knows it, without containers: what its script
// would do is done on the node.
type cachedJob struct {
	*cached
	admission *api.Admission
	waited    int // lines that say so
}

// begin is everything up to get_sources.
func (c *cached) begin() *cachedJob {
	c.b.Helper()
	request := executor.Request{
		Job: executor.Identity{
			Server: "http://caches.test", ID: cachedJobs.Add(1), Name: "cached", ProjectID: 1, Project: c.path,
			Ref: "main", SHA: strings.Repeat("c", 40), Protected: true,
		},
		Image:   executor.ImageRequest{Name: bed.image()},
		Sources: executor.Sources{Dir: c.path, Strategy: "fetch"},
		Caches:  []executor.Cache{{Key: "deps", Paths: []string{"deps/"}}},
	}
	a, err := bed.node.Client.Admit(c.b.Context(), api.AdmitRequest{Profile: "default", Runner: c.self, Request: request}, func(string) {})
	if err != nil {
		c.b.Fatal(err)
	}
	j := &cachedJob{cached: c, admission: a}
	j.step(api.StepFetch)
	return j
}

// step is timed.
func (j *cachedJob) step(name string) time.Duration {
	started := time.Now()
	result, err := bed.node.Client.CacheStep(j.b.Context(), j.admission.Job, name, api.CacheStep{Success: true}, func(string) { j.waited++ })
	took := time.Since(started)
	if err != nil {
		j.b.Errorf("%s: %v", name, err)
		return took
	}
	for _, line := range slices.Concat(result.Lines, result.Restored) {
		if strings.HasPrefix(line, "WARNING") {
			j.b.Errorf("%s: %s", name, line)
		}
	}
	return took
}

// checkout is the step that restores caches, when get_sources had nothing new.
func (j *cachedJob) checkout() time.Duration { return j.step(api.StepCheckout) }

// save is the step that saves them.
func (j *cachedJob) save() time.Duration { return j.step(api.StepSave) }

func (j *cachedJob) release() {
	j.b.Helper()
	if err := bed.node.Client.Release(j.b.Context(), j.admission.Job); err != nil {
		j.b.Fatal(err)
	}
}

func (j *cachedJob) dir() string { return filepath.Join(j.admission.Dirs.Builds, j.path) }

func (j *cachedJob) deps() string { return filepath.Join(j.dir(), "deps") }

// writeFiles writes each nth of so many files.
func writeFiles(b *testing.B, dir string, files, size, nth int) {
	b.Helper()
	random := rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%032d", time.Now().UnixNano())))
	content := make([]byte, size)
	for n := 0; n < files; n += nth {
		name := filepath.Join(dir, fmt.Sprint(n/1000), fmt.Sprint(n))
		_, _ = random.Read(content) // never fails
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = os.WriteFile(name, content, 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// archive does what gitlab-runner and tar do, once, with a job's cache.
func archive(b *testing.B, s *samples, row string, c *cached) {
	b.Helper()
	program := runner.Real()
	if program == "" {
		program = bed.programs.Runner
	}
	j := c.begin()
	defer j.release()
	j.checkout()
	for _, way := range []struct{ save, restore []string }{
		{[]string{"zip", program, "cache-archiver", "--path", "deps", "--file"}, []string{"unzip", program, "cache-extractor", "--file"}},
		{[]string{"tar", "tar", "-c", "deps", "-f"}, []string{"untar", "tar", "-x", "-f"}},
	} {
		dir := b.TempDir()
		file := filepath.Join(dir, "archive")
		s.add(row, way.save[0], timed(b, j.dir(), append(way.save[1:], file)))
		s.add(row, way.restore[0], timed(b, dir, append(way.restore[1:], file)))
		if want, got := count(b, j.deps()), count(b, filepath.Join(dir, "deps")); got != want {
			b.Errorf("%s: %d files of %d", way.restore[0], got, want)
		}
		if err := os.RemoveAll(dir); err != nil { // before the next needs the room
			b.Fatal(err)
		}
	}
}

func timed(b *testing.B, dir string, command []string) time.Duration {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), command[0], command[1:]...)
	cmd.Dir = dir
	started := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(started)
	if err != nil {
		b.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return took
}

func count(b *testing.B, dir string) (n int) {
	b.Helper()
	err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		n++
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
