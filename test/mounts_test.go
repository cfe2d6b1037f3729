package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestCacheMounts has caches in all places of a container, as all kinds of users.
func TestCacheMounts(t *testing.T) {
	for _, image := range []string{images.Busybox, images.User, images.NumericUser} {
		t.Run(image, func(t *testing.T) {
			p := newProject(t, files)
			dirs := []string{"/opt/new/deep", "/home", "sub/dir", "/builds/$CI_PROJECT_PATH/absolute", "src", "/shared", "shared"}
			spec := gitlab.JobSpec{
				Image: gitlab.Image{Name: registry.Image(image)},
				Variables: variables(
					"BERTH_CACHE_1", "id=outside,target="+dirs[0], "BERTH_CACHE_2", "id=home,target="+dirs[1],
					"BERTH_CACHE_3", "id=relative,target="+dirs[2], "BERTH_CACHE_4", "id=absolute,target="+dirs[3],
					"BERTH_CACHE_5", "id=tracked,target="+dirs[4], "BERTH_CACHE_6", "id=shared,target="+dirs[5]+",sharing=shared",
					"BERTH_CACHE_7", "id=inside,target="+dirs[6]+",sharing=locked"),
				Script: []string{"echo got $BERTH_CACHE_HIT_OUTSIDE $BERTH_CACHE_HIT_TRACKED $BERTH_CACHE_HIT_SHARED"},
			}
			var want strings.Builder
			for _, dir := range dirs {
				spec.Script = append(spec.Script, fmt.Sprintf("ls -A %s; echo $CI_JOB_NAME >>%s/f; mkdir %s/$CI_JOB_NAME", dir, dir, dir))
			}
			spec.Name = "one"
			p.run(spec, "Cache outside: empty", "\ngot miss miss miss\n", "Cache outside: published as generation 1", "Cache tracked: published as generation 1")
			spec.Name = "two"
			log := p.run(spec, "Cache outside: generation 1, ", "\ngot hit hit hit\n")
			require.Equal(t, len(dirs), strings.Count(log, "\nf\none\n"), want.String())

			// Read-only, and read by those who may not publish.
			read := spec
			read.Name = "three"
			read.Variables = variables("BERTH_CACHE_1", "id=outside,target=/out,readonly", "BERTH_CACHE_2", "id=absolute,target=in,readonly",
				"BERTH_CACHE_3", "id=relative,target=/rel,publish=never")
			read.Script = []string{"cat /out/f in/f /rel/f | tr '\\n' ' '", "touch /out/x && false || true", "touch in/x && false || true", "touch /rel/x; ls -A in /out | grep -c x || true"}
			log = p.run(read, "\none two one two one two ", "Cache relative: not published: nothing is, by its policy")
			require.Equal(t, 2, strings.Count(log, "Read-only file system"))
			require.NotContains(t, log, "Cache outside: published")
			read.Script = []string{"ls -A /rel"}
			require.NotContains(t, p.run(read), "\nx\n")
		})
	}
}

// TestBadCacheMounts explains what is wrong, which is the job's failure.
func TestBadCacheMounts(t *testing.T) {
	needNode(t)
	var cases []jobCase
	for spec, want := range map[string]string{
		"id=a":                         `BERTH_CACHE_1: cache field "target" is missing`,
		"target=/a":                    `BERTH_CACHE_1: cache field "id" is missing`,
		"id=../a,target=/a":            `BERTH_CACHE_1: cache field "id" is "../a"; expected no . or .. between slashes`,
		"id=a,target=/a,sharing=all":   `BERTH_CACHE_1: cache field "sharing" is "all"`,
		"id=a,target=../../etc":        `BERTH_CACHE_1: cache field "target" is "../../etc"`,
		"id=a,target=/":                `a cache cannot take its place`,
		"id=a,target=/proc/sys":        "a directory that the container needs as it is (/proc)",
		"id=a,target=/.berth/bin":      "a directory that the container needs as it is (/.berth)",
		"id=a,target=/a/../.berth":     "a directory that the container needs as it is (/.berth)",
		"id=a,target=.git/hooks":       "lies in the project's repository",
		"id=a,target=/builds":          "would take the place of the project's directory",
		"id=a,target=/a,scope=node":    "a scope is the operator's to give",
		"id=a,target=/a,pool=3":        "expected sharing=private with it",
		"id=a,target=README":           "a part of it is no directory",
		"id=a,target=/a,publish=maybe": "expected never, protected, scheduled or always",
	} {
		cases = append(cases, jobCase{
			name: spec, fails: true, exitCode: 1, says: []string{want}, not: []string{"\nnot reached\n"},
			spec: gitlab.JobSpec{Variables: variables("BERTH_CACHE_1", spec), Script: []string{"echo not reached"}},
		})
	}
	runJobs(t, cases)
}

// TestLiveMount lets two jobs work in one directory at once.
func TestLiveMount(t *testing.T) {
	p := newProject(t, files)
	spec := func(name, script string) gitlab.JobSpec {
		return gitlab.JobSpec{Name: name, Variables: variables("BERTH_CACHE_1", "id=live,target=/live,sharing=shared"), Script: []string{script}}
	}
	ping := p.start(spec("ping", "echo ping >/live/ping; "+until("/live/pong")+"; cat /live/pong"))
	require.NoError(t, ping.WaitLog(t.Context(), "echo ping"))
	p.run(spec("pong", until("/live/ping")+"; cat /live/ping; echo pong >/live/pong"),
		fmt.Sprintf("Cache live: shared directory, also in use by job %d", ping.ID), "\nping\n")
	require.Equal(t, gitlab.Success, end(t, ping))
	require.Contains(t, ping.Log(), "\npong\n")
	p.fail(gitlab.JobSpec{Variables: variables("BERTH_CACHE_1", "id=live,target=/live"), Script: []string{"echo not reached"}},
		`cache "live" is a directory that jobs and builds share, and not one of which each job gets a copy: ask for it with sharing=shared`)
}

// TestWaitForMount has jobs wait for each other, and for no longer than they may.
func TestWaitForMount(t *testing.T) {
	for _, sharing := range []string{"locked", "private,pool=1"} {
		t.Run(sharing, func(t *testing.T) {
			p := newProject(t, files)
			spec := func(name, script string) gitlab.JobSpec {
				return gitlab.JobSpec{Name: name, Variables: variables("BERTH_CACHE_1", "id=one,target=/one,sharing="+sharing), Script: []string{script}}
			}
			first := p.start(spec("first", "echo begun; "+until("/tmp/go")+"; echo first >/one/f"))
			require.NoError(t, first.WaitLog(t.Context(), "begun"))
			second := p.start(spec("second", "cat /one/f"))
			require.NoError(t, second.WaitLog(t.Context(), fmt.Sprintf("Waiting for cache one: %s is in use by job %d", strings.Split(sharing, ",")[0], first.ID)))
			impatient := p
			impatient.profile = "impatient"
			impatient.run(spec("third", "ls -A /one | wc -l"), "Waiting for cache one: ",
				"WARNING: cache one: it did not become free in time; the job goes on with an empty one", "\n0\n")
			attach(t, key(t, first), "touch /tmp/go")
			require.Equal(t, gitlab.Success, end(t, first))
			require.Equal(t, gitlab.Success, end(t, second))
			require.Contains(t, second.Log(), "\nfirst\n")
		})
	}
}

// TestOperatorsMounts are those of a profile, which projects have in common.
func TestOperatorsMounts(t *testing.T) {
	p := newProject(t, files)
	p.profile = "operated"
	group, _, _ := strings.Cut(p.Path, "/")
	sibling, err := p.s.AddProject(group+"/sibling", files)
	require.NoError(t, err)
	cousin, err := p.s.AddProject(group+"/sub/cousin", files)
	require.NoError(t, err)
	job := func(of *gitlab.Project, protected *bool, script string) gitlab.JobSpec {
		return gitlab.JobSpec{Project: of, Protected: protected, Script: []string{script}}
	}
	show := "for d in tools gems nightly; do printf \"$d \"; cat /opt/$d/f 2>/dev/null || echo none; done"
	p.run(job(p.Project, nil, "echo one | tee /opt/tools/f /opt/gems/f /opt/nightly/f"),
		"Cache tools: published", "Cache nightly: not published: only scheduled pipelines may", "Cache gems: published")
	p.run(job(sibling, no, show+"; echo evil | tee /opt/tools/f /opt/gems/f"), "\ntools one\ngems one\nnightly none\n", "Cache tools: not published: only jobs of protected refs may")
	p.run(job(cousin, nil, show), "\ntools one\ngems none\n")
	p.run(job(sibling, nil, show), "\ntools one\ngems one\n")
	scheduled := job(p.Project, nil, "echo night >/opt/nightly/f")
	scheduled.Edit = func(payload *gitlab.Payload) {
		for i := range payload.Variables {
			if payload.Variables[i].Key == "CI_PIPELINE_SOURCE" {
				payload.Variables[i].Value = "schedule"
			}
		}
	}
	p.run(scheduled, "Cache nightly: published as generation 1")
	forced := job(p.Project, nil, "cat /opt/nightly/f; echo day >/opt/nightly/f")
	forced.Variables = variables("BERTH_CACHE_PUBLISH", "true")
	p.run(forced, "\nnight\n", "Cache nightly: published as generation 2")
	unwanted := job(p.Project, nil, "cat /opt/nightly/f; echo never | tee /opt/nightly/f /opt/tools/f")
	unwanted.Variables = variables("BERTH_CACHE_PUBLISH", "false")
	p.run(unwanted, "\nday\n", "Cache tools: not published: BERTH_CACHE_PUBLISH is false")
	p.run(job(p.Project, nil, show), "\ntools one\ngems one\nnightly day\n")
}
