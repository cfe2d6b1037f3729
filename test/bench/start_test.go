package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkStart is how long berth takes to start, which it does about a dozen
// times a job, beside a program that does nothing.
func BenchmarkStart(b *testing.B) {
	needBed(b)
	dir := b.TempDir()
	source, empty := filepath.Join(dir, "empty.go"), filepath.Join(dir, "empty")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-o", empty, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build an empty program: %v\n%s", err, out)
	}
	const row, each = "start", 10
	s, rounds := newSamples(), 0
	for ; b.Loop(); rounds++ {
		for range each {
			for name, cmd := range map[string]*exec.Cmd{"empty": exec.Command(empty), berth: exec.Command(bed.programs.Berth, "--version")} {
				started := time.Now()
				err := cmd.Run()
				s.add(row, name, time.Since(started))
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	section("Start of a program: medians of %d", rounds*each)
	table([][]string{
		{"", "ms"},
		{"empty static Go program", number(s.median(row, "empty"), 2)},
		{"berth --version", number(s.median(row, berth), 2)},
	})
	s.metric(b, row, "empty")
	s.metric(b, row, berth)
}
