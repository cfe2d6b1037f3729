package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
)

// The tests of this file kill what others need, so none of them is parallel.

// TestDaemonKilledAmidCaches kills berthd at all stages of jobs that have to do with caches.
func TestDaemonKilledAmidCaches(t *testing.T) {
	s, _ := theServer(t)
	made, err := s.AddProject("group/killed-caches", files)
	require.NoError(t, err)
	p := project{T: t, Project: made, s: s, profile: "default"}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i, marker := range []string{
		"admitted", "Preparing environment", "Getting source", "Checking out", "Restoring cache", "step_script", "Saving cache", "Saving cache", "Cleaning up", "Cleaning up",
	} {
		j := p.start(gitlab.JobSpec{
			Name: fmt.Sprint(i), Image: image(images.Git), Cache: list("deps", "more/*.o"),
			Variables: variables("BERTH_CACHE_1", "id=m,target=/m", "BERTH_CACHE_2", "id=s,target=/s,sharing=locked", "BERTH_CACHE_3", "id=in-${tree:src},target=in"),
			Script: []string{
				"mkdir -p deps more; for d in deps more /m /s in; do echo $(ls $d | wc -l); touch $d/$CI_JOB_NAME.o; done | tr '\\n' ' '",
				"git status --short | wc -l", "[ $CI_JOB_NAME = 0 ] || rm -rf deps/0.o",
			},
			Artifacts: []gitlab.Artifact{{Paths: []string{"deps", "README"}}},
		})
		if marker != "admitted" {
			require.NoError(t, j.WaitLog(t.Context(), marker))
		}
		time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		require.NoError(t, node.KillDaemon())
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		require.NoError(t, node.StartDaemon(t.Context()))
		require.Equal(t, gitlab.Success, end(t, j), marker)
		in := i
		if i > 1 {
			in-- // without the first of all
		}
		require.Contains(t, j.Log(), fmt.Sprintf("\n%d %d %d %d %d ", in, i, i, i, i), marker)
		require.Contains(t, j.Log(), "201 Created", marker)
	}
	require.NoError(t, node.AwaitClean(t.Context()))
}

// TestCacheStorm has jobs write one cache, 20 at a time, while berthd, runners and all that belongs to the jobs are
// killed. What a job finds is always what one job has left, and all of that. BERTH_TEST_STORM is the number of jobs.
func TestCacheStorm(t *testing.T) {
	s, _ := theServer(t)
	count := 40
	if text := os.Getenv("BERTH_TEST_STORM"); text != "" {
		var err error
		count, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	made, err := s.AddProject("group/cache-storm", files)
	require.NoError(t, err)
	tags := []string{"cache-storm-0", "cache-storm-1"}
	runners := make([]*runner.Process, len(tags))
	start := func(i int) {
		runners[i], err = s.start("default", tags[i], 10)
		require.NoError(t, err)
		t.Cleanup(func() { _ = runners[i].Kill() }) // unless it has ended
	}
	for i := range runners {
		start(i)
	}
	// All files have the same text, and there are as many as ever.
	check := `check() { n=$(ls $1 | wc -l); if [ $n = 0 ]; then echo "$1 is empty"; elif [ $n = 30 ] && [ $(cat $1/* | sort -u | wc -l) = 1 ]; then echo "$1 is of $(cat $1/0)"; else echo "$1 is TORN"; fi; }; mkdir -p deps; check deps; check /m`
	anew := `mk() { rm -rf $1/*; for i in $(seq 0 29); do echo $CI_JOB_ID >$1/$i; [ $i != 15 ] || sleep 0.$((CI_JOB_ID % 10)); done; }; rm -rf deps; mkdir deps; mk deps; mk /m`
	change := `mk() { for i in $(seq 0 29); do echo $CI_JOB_ID >$1/.$i; mv $1/.$i $1/$i; [ $i != 15 ] || sleep 0.$((CI_JOB_ID % 10)); done; }; mk deps; mk /m`
	spec := func(i int) gitlab.JobSpec {
		return gitlab.JobSpec{
			Project: made, Name: fmt.Sprint("cache storm ", i), Tags: []string{tags[i%2]}, Image: image(images.Busybox),
			Variables: variables("BERTH_CACHE_1", "id=m,target=/m"), Cache: list("deps"),
			Script: []string{check, []string{anew, change}[i/2%2], fmt.Sprintf("exit %d", map[bool]int{true: 1}[i%7 == 0])},
		}
	}
	var jobs []*gitlab.Job
	for i := range count {
		j, err := s.Enqueue(spec(i))
		require.NoError(t, err)
		jobs = append(jobs, j)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(count)*10*time.Second)
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
		case <-time.After(time.Duration(500+random.IntN(1500)) * time.Millisecond):
		}
		switch n := random.IntN(20); {
		case n < 6:
			kills["berthd"]++
			require.NoError(t, node.KillDaemon())
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
			require.NoError(t, node.StartDaemon(t.Context()))
		case n < 7:
			kills["runner"]++
			i := random.IntN(len(runners))
			require.NoError(t, runners[i].Kill())
			for n, j := range jobs { // the server would find out in an hour
				if n%2 == i && j.State() != gitlab.Created && j.State() != gitlab.Pending {
					j.ForceCancel()
				}
			}
			start(i)
		default:
			kills["process"] += killOne(t, random)
		}
	}
	watching.Wait()
	require.NoError(t, ctx.Err(), "jobs did not end")
	took := time.Since(began)

	last := spec(2)
	for range 2 {
		j, err := s.Enqueue(last)
		require.NoError(t, err)
		require.Equal(t, gitlab.Success, end(t, j))
		jobs = append(jobs, j)
	}
	states, read := map[gitlab.State]int{}, map[string]int{}
	complete := map[string]bool{}
	for _, j := range jobs {
		states[j.State()]++
		complete[fmt.Sprint(j.ID)] = true
	}
	for _, j := range jobs {
		for line := range strings.Lines(j.Log()) {
			require.NotContains(t, line, " is TORN\n", j.Name())
			for _, dir := range []string{"deps", "/m"} {
				if of, ok := strings.CutPrefix(strings.TrimSpace(line), dir+" is of "); ok {
					require.True(t, complete[of], "%s in %s", of, j.Name())
					read[dir]++
				}
			}
		}
	}
	require.NotZero(t, read["deps"])
	require.NotZero(t, read["/m"])
	for _, r := range runners {
		require.NoError(t, r.Stop(context.WithoutCancel(ctx)))
	}
	require.NoError(t, node.AwaitClean(t.Context()))
	generations := map[string]int{}
	for key, number := range protectedKeys(t, made.ID) {
		generations[key] = number
	}
	t.Logf("%d jobs in %v: %v; killed: %v; read whole: %v; newest generations: %v", count, took.Round(time.Second), states, kills, read, generations)
}
