package generation_test

import (
	"archive/zip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// trees are what caches look like.
var trees = []struct {
	name  string
	files int
	size  int // of each
}{
	{"10MB", 100, 100 << 10},
	{"1GiB", 1024, 1 << 20},
	{"50k-files", 50_000, 1 << 10},
}

// BenchmarkClone makes, mounts and drops a clone; its time does not grow with the tree.
func BenchmarkClone(b *testing.B) {
	for _, tree := range trees {
		b.Run(tree.name, func(b *testing.B) {
			f := newFixture(b)
			f.grow(tree.files, tree.size)
			var times []time.Duration
			for b.Loop() {
				began := time.Now()
				c := f.clone("k", "job")
				times = append(times, time.Since(began))
				f.must(c.Discard(b.Context()))
			}
			report(b, times, "clone")
		})
	}
}

// BenchmarkPublish publishes one changed file in a hundred; beside it, zip packs the tree as gitlab-runner does.
func BenchmarkPublish(b *testing.B) {
	for _, tree := range trees {
		b.Run(tree.name, func(b *testing.B) {
			f := newFixture(b)
			f.grow(tree.files, tree.size)
			var same, changed []time.Duration
			for b.Loop() {
				c := f.clone("k", "same")
				began := time.Now()
				_, _, err := c.Publish(b.Context())
				same = append(same, time.Since(began))
				f.must(err)

				c = f.clone("k", "changes")
				for n := 0; n < tree.files; n += 100 {
					f.must(os.WriteFile(filepath.Join(c.Path(), path(n)), data(tree.size), 0o644))
				}
				began = time.Now()
				_, _, err = c.Publish(b.Context())
				changed = append(changed, time.Since(began))
				f.must(err)
			}
			report(b, same, "unchanged")
			report(b, changed, "changed")
			b.ReportMetric(float64(f.zip())/float64(median(changed)), "zip/changed")
		})
	}
}

// BenchmarkPublishFirst publishes whole trees.
func BenchmarkPublishFirst(b *testing.B) {
	for _, tree := range trees {
		b.Run(tree.name, func(b *testing.B) {
			f := newFixture(b)
			var times []time.Duration
			for b.Loop() {
				times = append(times, f.grow(tree.files, tree.size))
				f.must(f.Generations().Remove(b.Context(), "k", false))
				f.must(f.Generations().Collect(b.Context()))
			}
			report(b, times, "publish")
		})
	}
}

// BenchmarkManyClones clones while others publish large trees.
func BenchmarkManyClones(b *testing.B) {
	f := newFixture(b)
	f.grow(100, 100)
	c, err := f.Generations().Clone(b.Context(), "large", "large")
	f.must(err)
	for n := range 50_000 {
		name := filepath.Join(c.Overlay().Upper, path(n))
		f.must(os.MkdirAll(filepath.Dir(name), 0o755))
		f.must(os.WriteFile(name, nil, 0o644))
	}
	published := make(chan error, 1)
	go func() {
		_, _, err := c.Publish(b.Context())
		published <- err
	}()
	var times []time.Duration
	for b.Loop() {
		began := time.Now()
		c := f.clone("k", "job")
		times = append(times, time.Since(began))
		f.must(c.Discard(b.Context()))
	}
	f.must(<-published)
	report(b, times, "clone")
	b.ReportMetric(float64(slices.Max(times).Microseconds())/1000, "worst-clone-ms")
}

func path(n int) string { return fmt.Sprintf("%d/%d", n/1000, n) }

// data is different each time, and does not compress.
func data(size int) []byte {
	b := make([]byte, size)
	if f, err := os.Open("/dev/urandom"); err == nil {
		_, _ = io.ReadFull(f, b[:min(size, 4096)])
		_ = f.Close()
	}
	for n := 4096; n < size; n += 4096 {
		copy(b[n:], b[:4096])
		b[n]++
	}
	return b
}

// grow publishes a tree, and tells how long that took.
func (f fixture) grow(files, size int) time.Duration {
	f.Helper()
	c := f.clone("k", "grows")
	text := data(size)
	for n := range files {
		name := filepath.Join(c.Path(), path(n))
		f.must(os.MkdirAll(filepath.Dir(name), 0o755))
		f.must(os.WriteFile(name, text, 0o644))
	}
	began := time.Now()
	f.publish(c)
	return time.Since(began)
}

// zip packs the newest generation and unpacks nothing.
func (f fixture) zip() time.Duration {
	f.Helper()
	c := f.clone("k", "zip")
	began := time.Now()
	file, err := os.Create(filepath.Join(f.Config.Root, "cache.zip"))
	f.must(err)
	w := zip.NewWriter(file)
	f.must(w.AddFS(os.DirFS(c.Path())))
	f.must(w.Close())
	f.must(file.Close())
	took := time.Since(began)
	f.must(os.Remove(file.Name()))
	f.must(c.Discard(f.Context()))
	return took
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

func report(b *testing.B, times []time.Duration, what string) {
	b.ReportMetric(float64(median(times).Microseconds())/1000, what+"-ms")
}

// BenchmarkFlatten flattens a chain over a tree of many files.
func BenchmarkFlatten(b *testing.B) {
	f := newFixture(b)
	for n := range 30 {
		c := f.clone("k", "job")
		for m := range 50_000 / 30 {
			name := filepath.Join(c.Path(), fmt.Sprintf("%d/%d", n, m))
			f.must(os.MkdirAll(filepath.Dir(name), 0o755))
			f.must(os.WriteFile(name, nil, 0o644))
		}
		f.publish(c)
	}
	for b.Loop() {
		f.must(f.Generations().Flatten(b.Context(), "k"))
	}
}
