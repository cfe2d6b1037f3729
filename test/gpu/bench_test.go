//go:build cgo

package gpu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
)

// BenchmarkPrepare compares what prepare takes with a GPU and without, by
// turns.
func BenchmarkPrepare(b *testing.B) {
	if missing != "" {
		b.Skip(missing)
	}
	own := b.TempDir()
	fifo := filepath.Join(own, "results")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		b.Fatal(err)
	}
	results, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer results.Close()
	r, err := runner.Start(programs.Runner, own, runner.Config{
		Concurrent: 1, CheckInterval: 1,
		Runners: []runner.Runner{node.Runner("default", server.URL(), server.AddRunner("bench"))},
	}, nil, "--results", fifo)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := r.Stop(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	decoder := json.NewDecoder(results)
	took := map[string][]time.Duration{}
	run := func(kind, count string) {
		j, err := server.Enqueue(gitlab.JobSpec{
			Project: project, Name: kind, Tags: []string{"bench"}, Image: gitlab.Image{Name: registry.Image(images.Busybox)},
			Variables: variables("BERTH_GPU_COUNT", count), Script: []string{"true"},
		})
		if err != nil {
			b.Fatal(err)
		}
		if state, err := j.Wait(b.Context()); err != nil || state != gitlab.Success {
			b.Fatalf("%s: %v\n%s", state, err, j.Log())
		}
		var result runner.Result
		if err := decoder.Decode(&result); err != nil {
			b.Fatal(err)
		}
		for _, c := range result.Calls {
			if c.Name == "prepare" {
				took[kind] = append(took[kind], c.Took)
			}
		}
		if err := node.AwaitClean(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	run("first", "1") // what only the first job pays is no part of it
	for b.Loop() {
		run("without", "0")
		run("with", "1")
	}
	for _, kind := range []string{"without", "with"} {
		slices.Sort(took[kind])
		b.ReportMetric(took[kind][len(took[kind])/2].Seconds()*1000, "ms/prepare-"+kind)
	}
	b.ReportMetric(0, "ns/op")
}
