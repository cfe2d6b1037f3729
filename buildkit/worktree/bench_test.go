package worktree

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Mounting and unmounting takes as long, however many layers there are.
func BenchmarkMount(b *testing.B) {
	for _, layers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			n := newNode(b)
			var lower []string
			for range layers {
				lower = append(lower, n.fresh("layer"))
			}
			o := n.overlay(lower...)
			for b.Loop() {
				n.mount(o)
				n.unmount(o)
			}
		})
	}
}

// Planning and taking by path takes as long as the changes are many, and by pattern as all that is selected.
func BenchmarkSave(b *testing.B) {
	for _, size := range []struct {
		name  string
		files int
		bytes int64 // of each file
	}{{"10MB", 100, 100 << 10}, {"1GiB", 8, 128 << 20}, {"100k", 100_000, 0}} {
		n := newNode(b)
		base := n.fresh("base")
		names := make([]string, size.files)
		for i := range names {
			names[i] = fmt.Sprintf("deps/%d/%d", i/100, i)
			path := filepath.Join(base, names[i])
			n.must(os.MkdirAll(filepath.Dir(path), 0o755))
			f, err := os.Create(path)
			n.must(err)
			n.must(f.Truncate(size.bytes))
			n.must(f.Close())
		}
		workspace := n.fresh("workspace")
		n.write(workspace, "src/x", "x")
		for _, paths := range []string{"deps", "deps/**"} {
			for _, part := range []int{0, 100, 1} { // one in so many is changed; 0 for none
				b.Run(fmt.Sprintf("%s/%s/changed=%d", size.name, filepath.Base(paths), percent(part)), func(b *testing.B) {
					s := &saved{node: n, base: []string{base}}
					s.TB = b
					verdict := Verdict("")
					for b.Loop() {
						b.StopTimer()
						s.o = n.overlay(base, workspace)
						s.change(names, part, size.bytes)
						dst := n.fresh("layer")
						b.StartTimer()
						p := s.plan(paths)
						if verdict = p.Verdict; verdict != Unchanged {
							n.must(p.Take(b.Context(), dst))
						}
						b.StopTimer()
						n.must(os.RemoveAll(dst))
						n.must(os.RemoveAll(filepath.Dir(s.o.Upper)))
						b.StartTimer()
					}
					b.Logf("%s", verdict)
				})
			}
		}
	}
}

func percent(part int) int {
	if part == 0 {
		return 0
	}
	return 100 / part
}

// change writes some of the files, as the kernel would into an upper directory.
func (s *saved) change(names []string, part int, size int64) {
	if part == 0 {
		return
	}
	for i := 0; i < len(names); i += part {
		path := filepath.Join(s.o.Upper, names[i])
		s.must(os.MkdirAll(filepath.Dir(path), 0o755))
		f, err := os.Create(path)
		s.must(err)
		s.must(f.Truncate(size))
		s.must(f.Close())
	}
	s.must(layer.CopyRoot(s.o.Upper, s.base[0]))
}
