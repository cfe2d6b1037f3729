package test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// A storm kills what jobs need while they run: berthd, their runners, and the
// processes that belong to them.
type storm struct {
	t          *testing.T
	s          *server
	random     *rand.Rand
	tags       []string // one for each runner; jobs take turns
	runners    []*runner.Process
	concurrent int
	jobs       []*gitlab.Job
	kills      map[string]int
}

// newStorm starts two runners that have so many jobs each at a time.
func newStorm(t *testing.T, s *server, name string, concurrent int) *storm {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := &storm{
		t: t, s: s, random: rand.New(rand.NewPCG(seed, 0)), concurrent: concurrent, kills: map[string]int{},
		tags: []string{name + "-0", name + "-1"}, runners: make([]*runner.Process, 2),
	}
	for i := range w.runners {
		w.start(i)
	}
	return w
}

func (w *storm) start(i int) {
	w.t.Helper()
	p, err := w.s.start("default", w.tags[i], w.concurrent)
	require.NoError(w.t, err)
	w.runners[i] = p
	w.t.Cleanup(func() { _ = p.Kill() }) // unless it has ended
}

// enqueue makes the storm's next job.
func (w *storm) enqueue(spec gitlab.JobSpec) {
	w.t.Helper()
	spec.Tags = []string{w.tags[len(w.jobs)%len(w.tags)]}
	j, err := w.s.Enqueue(spec)
	require.NoError(w.t, err)
	w.jobs = append(w.jobs, j)
}

// What a storm does, the first so often in twenty times, and so on; for the
// rest it kills a process of a job.
type odds struct{ berthd, runner, forceCancel, cancel int }

// blow does something every one to four times pause until all jobs have ended.
func (w *storm) blow(limit, pause time.Duration, o odds) {
	t := w.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var watching sync.WaitGroup
	ended := make(chan struct{})
	watching.Go(func() {
		defer close(ended)
		for _, j := range w.jobs {
			_, _ = j.Wait(ctx)
		}
	})
	defer watching.Wait()
	for {
		select {
		case <-ended:
			require.NoError(t, ctx.Err(), "jobs did not end")
			return
		case <-time.After(pause + time.Duration(w.random.Int64N(int64(3*pause)))):
		}
		n := w.random.IntN(20)
		hit := func(odds int) bool { n -= odds; return n < 0 }
		switch {
		case hit(o.berthd):
			w.kills["berthd"]++
			require.NoError(t, node.KillDaemon())
			time.Sleep(time.Duration(w.random.IntN(300)) * time.Millisecond) // it may be away for a while
			require.NoError(t, node.StartDaemon(t.Context()))
		case hit(o.runner):
			w.kills["runner"]++
			i := w.random.IntN(len(w.runners))
			require.NoError(t, w.runners[i].Kill())
			for n, j := range w.jobs { // the server would find out in an hour
				if n%len(w.runners) == i && j.State() != gitlab.Created && j.State() != gitlab.Pending {
					j.ForceCancel()
				}
			}
			w.start(i)
		case hit(o.forceCancel):
			w.kills["force cancel"]++
			w.jobs[w.random.IntN(len(w.jobs))].ForceCancel()
		case hit(o.cancel):
			w.kills["cancel"]++
			w.jobs[w.random.IntN(len(w.jobs))].Cancel()
		default:
			w.kills["process"] += w.killOne()
		}
	}
}

// killOne kills one of the processes that have to do with jobs: a call of
// berth, a shim, an agent, a script. What containerd starts to clean up is
// spared; nobody would do it in its place before containerd is started anew.
func (w *storm) killOne() int {
	w.t.Helper()
	processes, err := node.Processes()
	require.NoError(w.t, err)
	maps.DeleteFunc(processes, func(_ int, command string) bool {
		return strings.HasPrefix(command, "runc ") || strings.HasSuffix(command, " delete")
	})
	if len(processes) == 0 {
		return 0
	}
	pid := slices.Sorted(maps.Keys(processes))[w.random.IntN(len(processes))]
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return 0 // it has just ended
	}
	w.t.Logf("killed %s", processes[pid])
	return 1
}

// stop stops the runners, and waits for the node to be clean.
func (w *storm) stop() {
	w.t.Helper()
	for _, r := range w.runners {
		require.NoError(w.t, r.Stop(w.t.Context()))
	}
	require.NoError(w.t, node.AwaitClean(w.t.Context()))
}

// String tells what became of the jobs.
func (w *storm) String() string {
	states := map[gitlab.State]int{}
	for _, j := range w.jobs {
		states[j.State()]++
	}
	return fmt.Sprintf("jobs: %v; killed: %v", states, w.kills)
}
