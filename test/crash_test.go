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
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
)

// The tests of this file kill what others need, so none of them is parallel.

// TestDaemonKilled kills berthd while a job runs, which goes on, and ends.
func TestDaemonKilled(t *testing.T) {
	s, project := theServer(t)
	j := s.enqueue(t, "default", gitlab.JobSpec{
		Project:  project,
		Services: []gitlab.Image{{Name: registry.Image(images.Web), Alias: "web", Variables: variables("GREETING", "still here")}},
		Script: []string{
			"echo begun", "while ! [ -e /tmp/go ]; do echo tick; sleep 0.1; done",
			"wget -q -O - http://web:8080", "nslookup web | tail -n +3 | grep -c Address",
		},
		AfterScript: []string{"echo after"},
	})
	require.NoError(t, j.WaitLog(t.Context(), "tick"))
	running := func() int {
		jobs, err := node.Client.Jobs(t.Context())
		require.NoError(t, err)
		return len(jobs)
	}
	for range 2 {
		require.NoError(t, node.KillDaemon())
		ticks := strings.Count(j.Log(), "tick\n")
		require.Eventually(t, func() bool { return strings.Count(j.Log(), "tick\n") > ticks+3 }, 20*time.Second, 20*time.Millisecond)
		require.NoError(t, node.StartDaemon(t.Context()))
		require.Equal(t, 1, running())
	}
	// Orderly, too.
	require.NoError(t, node.StopDaemon(t.Context()))
	require.NoError(t, node.StartDaemon(t.Context()))
	jobs, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	attach(t, jobs[0].Key, "touch /tmp/go")
	require.Equal(t, gitlab.Success, end(t, j))
	inOrder(t, j.Log(), "\nstill here\n", "\n1\n", "\nafter\n")
	require.NoError(t, node.AwaitClean(t.Context()))
}

// TestDaemonAway ends a job while there is no berthd: it cleans up when it is
// back.
func TestDaemonAway(t *testing.T) {
	s, project := theServer(t)
	j := s.enqueue(t, "default", gitlab.JobSpec{Project: project, Script: []string{"echo begun", "while ! [ -e /tmp/go ]; do sleep 0.1; done"}})
	require.NoError(t, j.WaitLog(t.Context(), "begun"))
	jobs, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	attach(t, jobs[0].Key, "setsid sh -c 'sleep 1; touch /tmp/go' >/dev/null 2>&1 &")
	require.NoError(t, node.KillDaemon())
	require.Equal(t, gitlab.Success, end(t, j))
	require.NoError(t, node.StartDaemon(t.Context()))
	require.NoError(t, node.AwaitClean(t.Context()))
}

// TestRunnerKilled kills the runner: nobody calls cleanup, and berthd sees
// to it.
func TestRunnerKilled(t *testing.T) {
	s, project := theServer(t)
	p, err := s.start("default", "killed", 4)
	require.NoError(t, err)
	j, err := s.Enqueue(gitlab.JobSpec{
		Project: project, Name: "killed", Tags: []string{"killed"}, Image: gitlab.Image{Name: registry.Image(images.Busybox)},
		Services: []gitlab.Image{{Name: registry.Image(images.Web)}},
		Script:   []string{"echo begun", "sleep 1000"},
	})
	require.NoError(t, err)
	require.NoError(t, j.WaitLog(t.Context(), "begun"))
	require.NoError(t, p.Kill())
	require.NoError(t, node.AwaitClean(t.Context()))
	j.ForceCancel()
}

// TestNothingIsLeft runs 50 jobs, ten at a time, and kills at random moments
// what has to do with them: berthd, runners, calls, containers' processes.
func TestNothingIsLeft(t *testing.T) {
	s, _ := theServer(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	project, err := s.AddProject("group/storm", files)
	require.NoError(t, err)

	tags := []string{"storm-0", "storm-1"}
	runners := make([]*runner.Process, len(tags))
	start := func(i int) {
		runners[i], err = s.start("default", tags[i], 5)
		require.NoError(t, err)
		t.Cleanup(func() { _ = runners[i].Kill() }) // unless it has ended
	}
	for i := range runners {
		start(i)
	}
	var jobs []*gitlab.Job
	for i := range 50 {
		spec := gitlab.JobSpec{
			Project: project, Name: fmt.Sprint("storm ", i), Tags: []string{tags[i%2]},
			Image:       gitlab.Image{Name: registry.Image([]string{images.Busybox, images.Git, images.User, images.Entrypoint}[i%4])},
			Script:      []string{"sleep 1000 & setsid sleep 1000 &", "dd if=/dev/zero of=file bs=1M count=4 2>/dev/null", fmt.Sprintf("sleep %d.%d", i%2, i%10), fmt.Sprintf("exit %d", i%3)},
			AfterScript: []string{"echo after"},
			Cache:       []gitlab.Cache{{Key: "storm", Paths: []string{"file"}}},
		}
		if i%3 == 0 {
			spec.Services = []gitlab.Image{{Name: registry.Image(images.Web), Alias: "web"}, {Name: registry.Image(images.Busybox), Alias: "other", Command: []string{"sleep", "1000"}}}
		}
		j, err := s.Enqueue(spec)
		require.NoError(t, err)
		jobs = append(jobs, j)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var watching sync.WaitGroup
	ended := make(chan struct{})
	watching.Go(func() {
		defer close(ended)
		for _, j := range jobs {
			_, _ = j.Wait(ctx)
		}
	})
	kills := map[string]int{}
	for storm := true; storm; {
		select {
		case <-ended:
			storm = false
			continue
		case <-time.After(time.Duration(200+random.IntN(600)) * time.Millisecond):
		}
		switch n := random.IntN(10); {
		case n < 2:
			kills["berthd"]++
			require.NoError(t, node.KillDaemon())
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
			require.NoError(t, node.StartDaemon(t.Context()))
		case n < 3:
			kills["runner"]++
			i := random.IntN(len(runners))
			require.NoError(t, runners[i].Kill())
			for n, j := range jobs { // the server would find out in an hour
				if n%2 == i && j.State() != gitlab.Created && j.State() != gitlab.Pending {
					j.ForceCancel()
				}
			}
			start(i)
		case n < 5:
			kills["force cancel"]++
			jobs[random.IntN(len(jobs))].ForceCancel()
		case n < 6:
			kills["cancel"]++
			jobs[random.IntN(len(jobs))].Cancel()
		default:
			kills["process"] += killOne(t, random)
		}
	}
	watching.Wait()
	require.NoError(t, ctx.Err(), "jobs did not end")
	states := map[gitlab.State]int{}
	for _, j := range jobs {
		states[j.State()]++
	}
	t.Logf("jobs: %v; killed: %v", states, kills)
	require.NotZero(t, states[gitlab.Success]+states[gitlab.Failed])

	// The node works as before.
	for i, tag := range tags {
		j, err := s.Enqueue(gitlab.JobSpec{
			Project: project, Name: tag, Tags: []string{tag}, Image: gitlab.Image{Name: registry.Image(images.Busybox)}, Script: []string{"true"},
		})
		require.NoError(t, err)
		require.Equal(t, gitlab.Success, end(t, j))
		require.NoError(t, runners[i].Stop(ctx))
	}
	require.NoError(t, node.AwaitClean(t.Context()))
}

// killOne kills one of the processes that have to do with jobs: a call of
// berth, a shim, an agent, a script. What containerd starts to clean up is
// spared; nobody would do it in its place before containerd is started anew.
func killOne(t *testing.T, random *rand.Rand) int {
	t.Helper()
	processes, err := node.Processes()
	require.NoError(t, err)
	maps.DeleteFunc(processes, func(_ int, command string) bool {
		return strings.HasPrefix(command, "runc ") || strings.HasSuffix(command, " delete")
	})
	if len(processes) == 0 {
		return 0
	}
	pid := slices.Sorted(maps.Keys(processes))[random.IntN(len(processes))]
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return 0 // it has just ended
	}
	t.Logf("killed %s", processes[pid])
	return 1
}
