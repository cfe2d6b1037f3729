package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
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
	project, err := s.AddProject("group/storm", files)
	require.NoError(t, err)

	w := newStorm(t, s, "storm", 5)
	for i := range 50 {
		spec := gitlab.JobSpec{
			Project: project, Name: fmt.Sprint("storm ", i),
			Image:       gitlab.Image{Name: registry.Image([]string{images.Busybox, images.Git, images.User, images.Entrypoint}[i%4])},
			Script:      []string{"sleep 1000 & setsid sleep 1000 &", "dd if=/dev/zero of=file bs=1M count=4 2>/dev/null", fmt.Sprintf("sleep %d.%d", i%2, i%10), fmt.Sprintf("exit %d", i%3)},
			AfterScript: []string{"echo after"},
			Cache:       []gitlab.Cache{{Key: "storm", Paths: []string{"file"}}},
		}
		if i%3 == 0 {
			spec.Services = []gitlab.Image{{Name: registry.Image(images.Web), Alias: "web"}, {Name: registry.Image(images.Busybox), Alias: "other", Command: []string{"sleep", "1000"}}}
		}
		w.enqueue(spec)
	}
	w.blow(3*time.Minute, 200*time.Millisecond, odds{berthd: 4, runner: 2, forceCancel: 4, cancel: 2})
	t.Log(w)
	require.Contains(t, w.String(), string(gitlab.Success)) // some got through

	// The node works as before.
	for range w.tags {
		w.enqueue(gitlab.JobSpec{Project: project, Name: "after the storm", Image: image(images.Busybox), Script: []string{"true"}})
		require.Equal(t, gitlab.Success, end(t, w.jobs[len(w.jobs)-1]))
	}
	w.stop()
}
