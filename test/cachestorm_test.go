package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
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
	made, err := s.AddProject("group/cache-storm", files)
	require.NoError(t, err)
	w := newStorm(t, s, "cache-storm", 10)
	// All files have the same text, and there are as many as ever. A script any of whose processes is killed fails.
	check := `check() { d=$1; names=$(ls $d); if [ -z "$names" ]; then echo "$d is empty"; return; fi; text=$(cat $d/* | sort -u); set -- $names; if [ $# = 30 ] && [ "${text%[!0-9]*}" = "$text" ]; then echo "$d is of $text"; else echo "$d is TORN: $# files of" $text; fi; }; mkdir -p deps; check deps; check /m; all=$(seq 0 29)`
	anew := `mk() { rm -rf $1/*; for i in $all; do echo $CI_JOB_ID >$1/$i; [ $i != 15 ] || sleep 0.$((CI_JOB_ID % 10)); done; }; rm -rf deps; mkdir deps; mk deps; mk /m`
	change := `mk() { for i in $all; do echo $CI_JOB_ID >$1/.$i; mv $1/.$i $1/$i; [ $i != 15 ] || sleep 0.$((CI_JOB_ID % 10)); done; }; mk deps; mk /m`
	spec := func(i int) gitlab.JobSpec {
		return gitlab.JobSpec{
			Project: made, Name: fmt.Sprint("cache storm ", i), Image: image(images.Busybox),
			Variables: variables("BERTH_CACHE_1", "id=m,target=/m"), Cache: list("deps"),
			Script: []string{check, []string{anew, change}[i/2%2], fmt.Sprintf("exit %d", map[bool]int{true: 1}[i%7 == 0])},
		}
	}
	for i := range count {
		w.enqueue(spec(i))
	}
	began := time.Now()
	w.blow(time.Duration(count)*10*time.Second, 500*time.Millisecond, odds{berthd: 6, runner: 1})
	took := time.Since(began)

	for range 2 {
		w.enqueue(spec(2))
		require.Equal(t, gitlab.Success, end(t, w.jobs[len(w.jobs)-1]))
	}
	read, complete := map[string]int{}, map[string]bool{}
	for _, j := range w.jobs {
		complete[fmt.Sprint(j.ID)] = true
	}
	for _, j := range w.jobs {
		for line := range strings.Lines(j.Log()) {
			require.NotRegexp(t, `^(deps|/m) is TORN:`, line, "%s: %s", j.Name(), j.Log())
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
	w.stop()
	generations := map[string]int{}
	for key, number := range protectedKeys(t, made.ID) {
		generations[key] = number
	}
	t.Logf("in %v: %v; read whole: %v; newest generations: %v", took.Round(time.Second), w, read, generations)
}
