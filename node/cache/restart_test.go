package cache_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// everything asks for all kinds of caches.
func everything(sha, strategy string) executor.Request {
	r := asking(request(sha),
		"id=early,target=/early", "id=late-${file:sum},target=/late", "id=inside,target=cached/inside", "id=locked,target=/locked,sharing=locked")
	r.Sources.Strategy = strategy
	r.Caches = []executor.Cache{{Key: "deps", Paths: []string{"deps"}}, {Key: "other", Paths: []string{"other/*"}}}
	return r
}

// script changes a bit of all that everything gives.
func (j *job) script(recreate bool) {
	j.Helper()
	if recreate {
		j.remove("deps")
	}
	sha := j.request.Job.SHA
	j.write("deps/new/of-"+sha, sha)
	j.write("deps/all", sha)
	j.write("other/of-"+sha, sha)
	j.write("cached/inside/of-"+sha, sha)
	for _, target := range []string{"/early", "/late", "/locked"} {
		require.NoError(j, os.WriteFile(filepath.Join(j.mounted(target), "of-"+sha), []byte(sha), 0o644))
	}
}

// state is all that a job sees.
func (j *job) state() map[string]string {
	j.Helper()
	files := tree(j, j.path("."))
	for _, target := range []string{"/early", "/late", "/locked"} {
		for name, text := range tree(j, j.mounted(target)) {
			files[target+"/"+name] = text
		}
	}
	return files
}

type crashed struct{}

// TestRestartAmidSteps has berthd killed before and after everything that it writes to the journal, at every step. The
// step is tried again, as berth does; the job sees what it would have seen, and so does the next one.
func TestRestartAmidSteps(t *testing.T) {
	n := newNode(t)
	points := 0
	variants := []struct {
		strategy string
		recreate bool
	}{{"clone", false}, {"fetch", false}, {"fetch", true}}
	for _, step := range []string{api.StepFetch, api.StepCheckout, api.StepSave, api.StepFinish} {
		for i, v := range variants {
			// All of them take minutes: each of three is tried with every third crash.
			at, every := i+1, len(variants)
			if os.Getenv("BERTH_TEST_LONG") != "" {
				at, every = 1, 1
			}
			for n.crashAt(v.strategy, v.recreate, step, at) {
				at += every
				points++
			}
		}
	}
	n.clean()
	t.Logf("%d crashes", points)
}

// crashAt runs jobs of a project of their own, the second of which has a crash at some time of a step: false if the
// step has no such time any more.
func (n *node) crashAt(strategy string, recreate bool, step string, at int) (met bool) {
	n.Helper()
	n.count++
	project := n.count
	of := func(sha string) *job {
		r := everything(sha, strategy)
		r.Job.ProjectID = int64(project)
		return n.job(r)
	}
	first := of("1111").admit().sources()
	first.script(false)
	first.end()
	require.NotContains(n, first.log(), "WARNING")

	j := of("2222").admit()
	crash := func(name string, do func()) {
		if name == step {
			left := at
			j.crash = func() {
				if left--; left == 0 {
					panic(crashed{})
				}
			}
			func() {
				defer func() {
					if p := recover(); p != nil {
						if _, ok := p.(crashed); !ok {
							panic(p)
						}
						met = true
					}
				}()
				do()
			}()
			j.crash = nil
			if !met {
				return
			}
			n.restart()
		}
		do()
	}
	crash(api.StepFetch, func() { j.step(api.StepFetch, api.CacheStep{}) })
	if strategy == "clone" {
		require.NoError(n, os.MkdirAll(j.path("."), 0o755))
	}
	j.getSources()
	crash(api.StepCheckout, func() {
		for j.checkout().Again {
			j.step(api.StepFetch, api.CacheStep{})
			j.getSources()
		}
	})
	want := map[string]string{
		".git/config": "url = http://gitlab-ci-token:" + token + "@host/group/project.git\n", ".git/HEAD": "2222\n", "main": "main at 2222\n",
		"deps/new/of-1111": "1111", "deps/all": "1111", "other/of-1111": "1111", "cached/inside/of-1111": "1111",
		"/early/of-1111": "1111", "/late/of-1111": "1111", "/locked/of-1111": "1111",
	}
	require.Equal(n, want, j.state(), "%s %s %d: after checkout: %s", strategy, step, at, j.log())
	j.script(recreate)
	maps.Copy(want, map[string]string{
		"deps/new/of-2222": "2222", "deps/all": "2222", "other/of-2222": "2222", "cached/inside/of-2222": "2222",
		"/early/of-2222": "2222", "/late/of-2222": "2222", "/locked/of-2222": "2222",
	})
	if recreate {
		delete(want, "deps/new/of-1111")
	}
	require.Equal(n, want, j.state(), "%s %s %d: after the script", strategy, step, at)
	crash(api.StepSave, func() { j.archive(true) })
	require.Equal(n, want, j.state(), "%s %s %d: after the caches are saved: %s", strategy, step, at, j.log())
	crash(api.StepFinish, func() { j.finish(true) })
	require.NotContains(n, j.log(), "WARNING", "%s %s %d", strategy, step, at)
	j.release()
	j.release()

	next := of("2222").admit().sources()
	require.Equal(n, want, next.state(), "%s %s %d: in the next job", strategy, step, at)
	next.release()
	for _, key := range n.engine.Generations().Keys() {
		if !strings.HasPrefix(key, identityOf(project)) {
			continue
		}
		list := n.engine.Generations().List(key)
		require.Len(n, list, 2, "%s %s %d: generations of %s", strategy, step, at, key)
	}
	return met
}

func identityOf(project int) string {
	id := identity
	id.ProjectID = int64(project)
	return id.ProjectKey()
}
