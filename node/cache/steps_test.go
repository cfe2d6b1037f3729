package cache_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
)

// A job whose sources cannot be got in the tree of an earlier one gets a fresh one; that of the earlier is withdrawn
// when it was only that, but not by jobs that others do not trust.
func TestDamagedTree(t *testing.T) {
	n := newNode(t)
	n.job(request("1111")).admit().sources().release()
	untrusted := request("2222")
	untrusted.Job.Protected = false
	for _, r := range []executor.Request{untrusted, request("2222")} {
		j := n.job(r).admit()
		require.True(t, j.step(api.StepFetch, api.CacheStep{}).Kept)
		require.FileExists(t, j.path("main"))
		j.step(api.StepRefetch, api.CacheStep{})
		require.Empty(t, tree(t, j.path(".")))
		j.getSources()
		j.checkout()
		j.release()
	}
	for _, key := range n.engine.Generations().Keys() {
		list := n.engine.Generations().List(key)
		require.Len(t, list, 1, key)
		require.Equal(t, "2222", list[0].Note, key)
	}
	n.clean()
}

// One that was withdrawn while a job had a copy of it is not published by that job, which goes on with it.
func TestWithdrawnTree(t *testing.T) {
	n := newNode(t)
	n.job(request("1111")).admit().sources().release()
	j := n.job(request("2222")).admit()
	require.True(t, j.step(api.StepFetch, api.CacheStep{}).Kept)
	key := n.engine.Generations().Keys()[0]
	require.NoError(t, n.engine.Generations().Remove(t.Context(), key, true))
	j.getSources()
	require.False(t, j.checkout().Again)
	require.Equal(t, "main at 2222\n", tree(t, j.path("."))["main"])
	require.Contains(t, tree(t, j.path("."))[".git/config"], token)
	j.release()
	require.Empty(t, n.engine.Generations().Keys())
	n.clean()
}

// Jobs of one commit wait for the one that fetches it, however it ends.
func TestFetchOnce(t *testing.T) {
	n := newNode(t)
	first, second, third := n.job(request("1111")).admit(), n.job(request("1111")).admit(), n.job(request("1111")).admit()
	first.step(api.StepFetch, api.CacheStep{})
	kept := make(chan *job, 2)
	told := make(chan string, 2)
	for _, j := range []*job{second, third} {
		go func() {
			result, err := n.service.Step(t.Context(), j.key, api.StepFetch, api.CacheStep{}, func(line string) { told <- line })
			if err == nil && result.Kept {
				kept <- j
			}
		}()
	}
	for range 2 {
		require.Equal(t, "Waiting for job 1, which fetches the same commit", wait(t, told))
	}
	first.getSources()
	first.checkout()
	for range 2 {
		j := wait(t, kept)
		require.Equal(t, "main at 1111\n", tree(t, j.path("."))["main"])
	}
	for _, j := range []*job{first, second, third} {
		j.release()
	}

	// One that is released instead lets another fetch.
	first, second = n.job(request("2222")).admit(), n.job(request("2222")).admit()
	first.step(api.StepFetch, api.CacheStep{})
	fetched := make(chan error, 1)
	go func() {
		_, err := n.service.Step(t.Context(), second.key, api.StepFetch, api.CacheStep{}, func(line string) { told <- line })
		fetched <- err
	}()
	wait(t, told)
	first.release()
	require.NoError(t, wait(t, fetched))
	second.getSources()
	second.checkout()
	second.release()
	n.clean()
}

// A job waits for a directory that others have, says for whom, and at the limit goes on with an empty one.
func TestWait(t *testing.T) {
	for _, tt := range []struct {
		spec, waits string
		fits        int
	}{
		{"id=a,target=/a,sharing=locked", "Waiting for cache a: locked is in use by job 1, ", 1},
		{"id=a,target=/a,sharing=private,pool=2", "Waiting for cache a: private is in use by job 1, job 2, ", 2},
	} {
		t.Run(strings.Split(tt.spec, "sharing=")[1], func(t *testing.T) {
			n := newNode(t)
			var holders []*job
			for range tt.fits {
				j := n.job(asking(request("1111"), tt.spec)).admit()
				require.NoError(t, os.WriteFile(filepath.Join(j.mounted("/a"), "f"), []byte(j.key), 0o644))
				holders = append(holders, j)
			}
			late := n.job(asking(request("1111"), tt.spec))
			late.policy.Wait = executor.Duration(300 * time.Millisecond)
			late.admit()
			require.Contains(t, late.log(), tt.waits)
			require.Contains(t, late.log(), "WARNING: cache a: it did not become free in time; the job goes on with an empty one")
			require.Empty(t, tree(t, late.mounted("/a")))
			require.Equal(t, "miss", late.caches.Env["BERTH_CACHE_HIT_A"])
			late.release()

			// After a restart they have it still, and it is free when they give it back.
			n.restart()
			told := make(chan struct{}, 100)
			next := n.job(asking(request("1111"), tt.spec))
			next.policy.Wait = executor.Duration(20 * time.Second)
			admitted := make(chan error, 1)
			n.jobs[next.key] = next
			go func() {
				caches, err := n.service.Admit(t.Context(), cache.Start{
					Key: next.key, Request: next.request, Policy: next.policy, Dir: next.dir, Builds: next.builds, Save: next.save,
				}, func(string) { told <- struct{}{} })
				next.caches = caches
				admitted <- err
			}()
			wait(t, told)
			holders[0].release()
			require.NoError(t, wait(t, admitted))
			require.Equal(t, map[string]string{"f": holders[0].key}, tree(t, next.mounted("/a")))
			require.Equal(t, "hit", next.caches.Env["BERTH_CACHE_HIT_A"])
			for _, j := range append(holders[1:], next) {
				j.release()
			}
			n.clean()
		})
	}
}

// A job that is to be released keeps its lock until it is, since something of it may live.
func TestLockOfEndedJob(t *testing.T) {
	n := newNode(t)
	const locked = "id=a,target=/a,sharing=locked"
	j := n.job(asking(request("1111"), locked)).admit()
	j.ended = true
	n.restart()
	late := n.job(asking(request("1111"), locked))
	late.policy.Wait = 0
	late.admit()
	require.Contains(t, late.log(), "it did not become free in time")
	j.release()
	late.release()
	next := n.job(asking(request("1111"), locked))
	next.policy.Wait = 0
	next.admit()
	require.NotContains(t, next.log(), "WARNING")

	// What was given back before berthd ended is nobody's after.
	given := next.journal
	next.release()
	other := n.job(asking(request("1111"), locked)).admit()
	next.journal, next.ended = given, true
	n.jobs[next.key] = next
	n.restart()
	next.release()
	other.release()
	n.clean()
}

// One id is one cache, shared in one way.
func TestOneMode(t *testing.T) {
	n := newNode(t)
	j := n.job(asking(request("1111"), "id=a,target=/a,sharing=shared", "id=b,target=/b")).admit()
	require.NoError(t, os.WriteFile(filepath.Join(j.mounted("/b"), "f"), nil, 0o644))
	j.finish(true)
	for spec, want := range map[string]string{
		"id=a,target=/a,sharing=locked": "is asked for as locked, and is shared to j1-0123abcd: one cache is shared in one way at a time",
		"id=a,target=/a":                "is a directory that jobs and builds share, and not one of which each job gets a copy",
		"id=b,target=/b,sharing=shared": "is one of which each job gets a copy (sharing=snapshot), and no directory that is shared",
	} {
		other := n.job(asking(request("1111"), spec))
		err := other.tryAdmit()
		var failure *executor.BuildFailure
		require.ErrorAs(t, err, &failure, spec)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "BERTH_CACHE_0")
		other.release()
	}
	j.release()
	n.clean()
}

// Caches in caches are mounted, published and had again like others.
func TestNestedTargets(t *testing.T) {
	n := newNode(t)
	specs := []string{"id=inner,target=dir/in/inner", "id=outer,target=dir", "id=deep,target=/opt/a/b", "id=top,target=/opt/a"}
	j := n.job(asking(request("1111"), specs...)).admit().sources()
	j.write("dir/file", "outer")
	j.write("dir/in/inner/file", "inner")
	var targets []string
	for _, m := range j.caches.Mounts {
		targets = append(targets, m.Target)
	}
	require.Equal(t, []string{"/opt/a", "/opt/a/b"}, targets, "in the order of mounting")
	j.finish(true)
	require.NotContains(t, j.log(), "WARNING")
	j.release()
	next := n.job(asking(request("1111"), specs...)).admit().sources()
	require.Equal(t, "outer", tree(t, next.path("dir"))["file"])
	require.Equal(t, "inner", tree(t, next.path("dir"))["in/inner/file"])
	next.release()
	n.clean()
}

// A key that names what the commit has not is a warning and an empty cache.
func TestMissingContent(t *testing.T) {
	n := newNode(t)
	r := asking(request("1111"), "id=a-${file:missing},target=/a", "id=b-${tree:src},target=/b")
	r.Caches = []executor.Cache{{Key: "c-${file:missing}", Paths: []string{"deps"}}, {Key: "d-${file:sum}", Paths: []string{"other"}}}
	j := n.job(r).admit().sources()
	require.Contains(t, j.log(), "WARNING: cache a-${file:missing}: its key names what the commit does not have: file:missing; the job goes on with an empty one")
	require.Contains(t, j.log(), "WARNING: cache c-${file:missing}: its key names what the commit does not have: file:missing; the job goes on with an empty one")
	require.NotContains(t, j.log(), "WARNING: cache b")
	j.write("deps/f", "f")
	j.write("other/f", "f")
	j.archive(true)
	require.Contains(t, j.log(), "WARNING: cache c-${file:missing}: not saved, since its key is not known")
	j.finish(true)
	j.release()
	next := n.job(r).admit().sources()
	require.NoFileExists(t, next.path("deps/f"))
	require.FileExists(t, next.path("other/f"))
	next.release()
	n.clean()
}

// What a job publishes has none of its secrets.
func TestScrubbed(t *testing.T) {
	n := newNode(t)
	j := n.job(request("1111")).admit().sources()
	require.Contains(t, tree(t, j.path("."))[".git/config"], token, "the job goes on with its own")
	j.release()
	c, err := n.engine.Generations().Clone(t.Context(), n.engine.Generations().Keys()[0], "reader")
	require.NoError(t, err)
	require.Len(t, c.Overlay().Lower, 1)
	files := tree(t, c.Overlay().Lower[0])
	require.NoError(t, c.Discard(t.Context()))
	require.Contains(t, files[".git/config"], "url = http://host/")
	for name, text := range files {
		require.NotContains(t, text, token, name)
	}
}

// A process that works in the tree keeps it from being taken away: caches are saved beside it.
func TestTreeInUse(t *testing.T) {
	n := newNode(t)
	r := request("1111")
	r.Caches = []executor.Cache{{Key: "deps", Paths: []string{"deps"}}}
	j := n.job(r).admit().sources()
	j.write("deps/f", "saved")
	ctx, cancel := context.WithCancel(t.Context())
	process := exec.CommandContext(ctx, "sleep", "60")
	process.Dir = j.path("deps")
	require.NoError(t, process.Start())
	j.archive(true)
	require.Contains(t, j.log(), "Cache deps: published as generation 1")
	j.write("deps/f", "after")
	j.archive(true)
	require.NoError(t, os.WriteFile(j.path("deps/g"), nil, 0o644))
	cancel()
	_ = process.Wait() // it was killed
	j.finish(true)
	j.release()
	next := n.job(r).admit().sources()
	require.Equal(t, map[string]string{"f": "saved"}, tree(t, next.path("deps")))
	next.release()

	// In the tree while it is to be laid: the runner's script serves.
	j = n.job(r).admit()
	j.step(api.StepFetch, api.CacheStep{})
	j.getSources()
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	process = exec.CommandContext(ctx, "sleep", "60")
	process.Dir = j.path(".")
	require.NoError(t, process.Start())
	require.False(t, j.checkout().Native)
	require.Contains(t, j.log(), "The runner's own script serves cache: the working tree is in use")
	require.Equal(t, "main at 1111\n", tree(t, j.path("."))["main"])
	cancel()
	_ = process.Wait() // it was killed
	j.release()
	n.clean()
}
