package test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// project is one of a test's own, whose jobs run one after another.
type project struct {
	*testing.T
	*gitlab.Project
	s       *server
	profile string
}

// newProject makes one in a group of its own. The test goes on in parallel with others.
func newProject(t *testing.T, files fstest.MapFS) project {
	t.Helper()
	s, _ := theServer(t)
	name := strings.NewReplacer(" ", "-", "_", "-").Replace(strings.ToLower(t.Name()))
	p, err := s.AddProject(name+"/project", files)
	require.NoError(t, err)
	t.Parallel()
	return project{T: t, Project: p, s: s, profile: "default"}
}

func (p project) start(spec gitlab.JobSpec) *gitlab.Job {
	p.Helper()
	if spec.Project == nil {
		spec.Project = p.Project
	}
	return p.s.enqueue(p.T, p.profile, spec)
}

// run runs a job that succeeds and says some texts in this order.
func (p project) run(spec gitlab.JobSpec, says ...string) string {
	p.Helper()
	j := p.start(spec)
	require.Equal(p, gitlab.Success, end(p.T, j))
	inOrder(p.T, j.Log(), says...)
	return j.Log()
}

// fail is run for a job that fails.
func (p project) fail(spec gitlab.JobSpec, says ...string) string {
	p.Helper()
	j := p.start(spec)
	require.Equal(p, gitlab.Failed, end(p.T, j))
	inOrder(p.T, j.Log(), says...)
	return j.Log()
}

// key is a job's key on the node.
func key(t *testing.T, j *gitlab.Job) string {
	t.Helper()
	jobs, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	for _, on := range jobs {
		if on.Identity.ID == j.ID {
			return on.Key
		}
	}
	t.Fatalf("job %s is not on the node", j.Name())
	return ""
}

func image(name string) gitlab.Image { return gitlab.Image{Name: registry.Image(name)} }

func list(dirs ...string) []gitlab.Cache {
	return []gitlab.Cache{{Key: "deps", Paths: dirs}}
}

// until waits in a script for a file.
func until(file string) string { return fmt.Sprintf("while ! [ -e %s ]; do sleep 0.1; done", file) }

// no is a job's ref that nobody trusts.
var no = new(bool)

// TestCachedTree does to cached files what package managers do.
func TestCachedTree(t *testing.T) {
	p := newProject(t, fstest.MapFS{"README": {Data: []byte("read me\n")}, "web/main": {Data: []byte("main\n")}})
	spec := gitlab.JobSpec{Image: image(images.Git), Cache: list("web/deps")}
	show := "(cd web/deps && find . -type f | sort | xargs grep -H . | tr '\\n' ' '; echo)"
	first := func(script ...string) gitlab.JobSpec { s := spec; s.Script = script; return s }
	p.run(first("mkdir -p web/deps/a/b; echo 1 >web/deps/a/b/f; echo 2 >web/deps/g; ln -s g web/deps/link"), "published as generation 1")
	p.run(first(show, "test -L web/deps/link", "rm -rf web/deps", "test ! -e web/deps", "mkdir -p web/deps/a; echo 3 >web/deps/a/h; "+show),
		"\n./a/b/f:1 ./g:2", "\n./a/h:3 \n", "published as generation 2")
	// As npm ci does: out of the way, then anew.
	p.run(first(show, "mv web/deps web/.deps-old; mkdir web/deps; tar -C web/.deps-old -c . | tar -C web/deps -x; rm -r web/.deps-old; echo 4 >web/deps/i", show),
		"\n./a/h:3 \n", "\n./a/h:3 ./i:4 \n", "published as generation 3")
	p.run(first("mv web/deps/i web/main README web/deps/a; mv web/deps/a/h h; mv web/deps web/moved; mkdir web/deps; mv web/moved/a web/deps/; rmdir web/moved", show, "cat h"),
		"\n./a/README:read me ./a/i:4 ./a/main:main \n", "\n3\n", "published as generation 4")
	p.run(first("git status --short", show, "git clean -ffdx -q; test ! -e web/deps && git status --short | wc -l"),
		"\n?? web/deps/\n", "\n./a/README:read me ./a/i:4 ./a/main:main \n", "\n0\n", "not saved: there are no such files")
	p.run(first(show, "cat README web/main"), "./a/README:read me ./a/i:4 ./a/main:main \n", "read me\nmain\n", "unchanged, generation 4 stays the newest")
}

// TestCacheKeywords goes through what `cache:` may say.
func TestCacheKeywords(t *testing.T) {
	p := newProject(t, files)
	make := "for d in a b c; do mkdir -p $d; echo $CI_JOB_NAME >$d/f; done; ls"
	show := "for d in a b c; do printf \"$d \"; cat $d/f 2>/dev/null || echo none; done"
	job := func(name string, script string, caches ...gitlab.Cache) gitlab.JobSpec {
		return gitlab.JobSpec{Name: name, Image: image(images.Git), Script: []string{script}, Cache: caches}
	}
	a, b := gitlab.Cache{Key: "a", Paths: []string{"a"}}, gitlab.Cache{Key: "b", Paths: []string{"b/*"}}
	p.run(job("one", make, a, b), "Cache a-protected: empty", "Cache b-protected: empty", "Cache a-protected: published as generation 1", "Cache b-protected: published as generation 1")
	p.run(job("two", show, a, b), "\na one\nb one\nc none\n")

	pull, push := a, a
	pull.Policy, push.Policy = "pull", "$POLICY"
	log := p.run(job("three", make, pull), "Cache a-protected: generation 1")
	require.NotContains(t, log, "published as generation")
	pushed := job("four", show+"; echo four >a/f 2>/dev/null || { mkdir a; echo four >a/f; }", push)
	pushed.Variables = variables("POLICY", "push")
	p.run(pushed, "Cache a-protected: not asked for, by its policy", "\na none\n", "Cache a-protected: published as generation 2")
	p.run(job("five", show, a), "\na four\n")

	failing, always := gitlab.Cache{Key: "failing", Paths: []string{"b"}, When: "on_failure"}, gitlab.Cache{Key: "always", Paths: []string{"c"}, When: "always"}
	p.fail(job("six", make+"; false", a, failing, always), "Cache failing-protected: published", "Cache always-protected: published")
	p.run(job("seven", show+";echo seven >b/f; echo seven >c/f", a, failing, always), "\na four\nb six\nc six\n", "Cache always-protected: published as generation 2")
	p.run(job("eight", show, a, failing, always), "\na four\nb six\nc seven\n")

	back := gitlab.Cache{Key: "new", Paths: []string{"a"}, FallbackKeys: []string{"none", "$KEY"}}
	fell := job("nine", "echo got $BERTH_CACHE_HIT_NEW; "+show+"; echo nine >a/f", back)
	fell.Variables = variables("KEY", "a")
	p.run(fell, "Cache new-protected: fallback a-protected, generation 2", "\ngot fallback\na four\n", "Cache new-protected: published as generation 1")
	p.run(fell, "Cache new-protected: generation 1", "\ngot hit\na nine\n")
	p.run(job("ten", show, a), "\na four\n")
	global := job("eleven", "echo got $BERTH_CACHE_HIT_GLOBAL; "+show, gitlab.Cache{Key: "global", Paths: []string{"a"}})
	global.Variables, global.Protected = variables("CACHE_FALLBACK_KEY", "new-non_protected"), no
	p.run(global, "Cache global-non_protected: fallback new-non_protected, generation 2", "\ngot fallback\na nine\n")

	untracked := gitlab.Cache{Key: "untracked", Untracked: true}
	globs := gitlab.Cache{Key: "globs", Paths: []string{"**/*.o", "src/gen*/"}}
	p.run(job("twelve", "echo c >>README; mkdir -p x/y src/gen1; touch x/y/z.o x/y/z.c src/gen1/f .hidden", untracked, globs),
		"Cache untracked-protected: published", "Cache globs-protected: published")
	p.run(job("thirteen", "cat README; find . -name .git -prune -o -type f -print | sort | tr '\\n' ' '", untracked),
		"\nread me\n./.hidden ./README ./src/gen1/f ./src/main ./x/y/z.c ./x/y/z.o")
	p.run(job("fourteen", "find . -name .git -prune -o -type f -print | sort | tr '\\n' ' '", globs), "\n./README ./src/gen1/f ./src/main ./x/y/z.o")

	off := job("fifteen", show, a)
	off.Variables = variables("BERTH_CACHE_NATIVE", "false")
	p.run(off, "The runner's own script serves cache: BERTH_CACHE_NATIVE is false", "\na none\n")
	p.run(job("sixteen", show, gitlab.Cache{Key: "a", Paths: []string{"${X:-a}"}}), "The runner's own script serves cache: ", "is an expression of the shell")
}

// TestCacheByContent keys caches by what is in the commit.
func TestCacheByContent(t *testing.T) {
	at := func(sum, src string) fstest.MapFS {
		return fstest.MapFS{"sum": {Data: []byte(sum)}, "src/a": {Data: []byte(src)}, "other": {Data: []byte(sum + src + t.Name())}}
	}
	p := newProject(t, at("1", "1"))
	spec := gitlab.JobSpec{
		Image: image(images.Git),
		Variables: variables("BERTH_CACHE_1", "id=tree-${tree:src},target=/tree", "BERTH_CACHE_2", "id=file-${file:sum},target=in/file",
			"BERTH_CACHE_3", "id=gone-${file:gone},target=/gone"),
		Cache:  []gitlab.Cache{{Key: "web-${file:sum}", Paths: []string{"deps"}, FallbackKeys: []string{"web"}}, {Key: "x-${tree:none}", Paths: []string{"x"}}},
		Script: []string{"echo tree=$BERTH_CACHE_HIT_TREE file=$BERTH_CACHE_HIT_FILE gone=$BERTH_CACHE_HIT_GONE web=$BERTH_CACHE_HIT_WEB", "mkdir -p deps; echo x | tee /tree/f in/file/f /gone/f deps/f"},
	}
	p.run(spec, "WARNING: cache gone-${file:gone}: its key names what the commit does not have: file:gone",
		"WARNING: cache x-${tree:none}-protected: its key names what the commit does not have: tree:none", "\ntree=miss file=miss gone=miss web=miss\n")
	p.run(spec, "\ntree=hit file=hit gone=miss web=hit\n")
	for _, c := range []struct{ sum, src, want string }{
		{"1", "2", "tree=miss file=hit gone=miss web=hit"}, {"2", "1", "tree=hit file=miss gone=miss web=miss"}, {"1", "1", "tree=hit file=hit gone=miss web=hit"},
	} {
		_, err := p.Commit(gitlab.DefaultBranch, at(c.sum, c.src))
		require.NoError(t, err)
		p.run(spec, "\n"+c.want+"\n")
	}
	// Without a commit there is nothing that a key could name.
	bare := spec
	bare.Variables = append(variables("GIT_STRATEGY", "empty"), spec.Variables...)
	p.run(bare, "its key names what the commit does not have: tree:src", "\ntree=miss file=miss gone=miss web=miss\n")
}

// TestCachesAndStrategies has caches whatever the sources are.
func TestCachesAndStrategies(t *testing.T) {
	for _, strategy := range []string{"fetch", "clone", "empty", "none"} {
		t.Run(strategy, func(t *testing.T) {
			p := newProject(t, files)
			for _, dir := range []string{"", "/builds/elsewhere/deep/$CI_PROJECT_NAME", "/builds/flat"} {
				spec := gitlab.JobSpec{
					Image:     image(images.Git),
					Variables: variables("GIT_STRATEGY", strategy, "GIT_CLONE_PATH", dir, "BERTH_CACHE_1", "id=in"+fmt.Sprint(len(dir))+",target=mounted"),
					Cache:     []gitlab.Cache{{Key: "deps-" + fmt.Sprint(len(dir)), Paths: []string{"deps/"}}},
					Script:    []string{"pwd; ls; cat deps/f mounted/f 2>/dev/null || echo cold", "mkdir -p deps; echo warm | tee deps/f mounted/f"},
				}
				for _, want := range []string{"\ncold\n", "\nwarm\nwarm\n"} {
					log := p.run(spec, want)
					require.NotContains(t, log, "WARNING: cache")
					require.Equal(t, strategy == "fetch" || strategy == "clone", strings.Contains(log, "\nREADME\n"))
				}
			}
		})
	}
}

// TestArtifactsOfCache uploads what was cached just before.
func TestArtifactsOfCache(t *testing.T) {
	p := newProject(t, files)
	for i := range 2 {
		spec := gitlab.JobSpec{
			Name: fmt.Sprint(i), Cache: list("deps"), Script: []string{"mkdir -p deps/sub; echo $CI_JOB_NAME >deps/sub/of-$CI_JOB_NAME; echo $CI_JOB_NAME >deps/all"},
			Artifacts: []gitlab.Artifact{{Paths: []string{"deps/"}}},
		}
		maker := p.start(spec)
		require.Equal(t, gitlab.Success, end(t, maker))
		p.run(gitlab.JobSpec{Dependencies: []*gitlab.Job{maker}, Script: []string{"cat deps/all deps/sub/* | tr '\\n' ' '"}}, "\n"+[]string{"0 0 ", "1 0 1 "}[i])
	}
}

// TestCachesWhileInUse has processes in the tree when it is to be taken away.
func TestCachesWhileInUse(t *testing.T) {
	p := newProject(t, files)
	leave := "sh -c 'cd \"$CI_PROJECT_DIR\" && exec sleep 1000' >/dev/null 2>&1 &"
	spec := gitlab.JobSpec{Image: image(images.Git), Cache: list("deps"), Script: []string{
		"mkdir -p deps; echo $CI_JOB_NAME >deps/f", "(cd deps && exec sh -c 'while :; do echo late >>f; sleep 0.01; done' >/dev/null 2>&1) &",
	}, Artifacts: []gitlab.Artifact{{Paths: []string{"deps/f"}}}}
	spec.Name, spec.Script[0] = "one", "mkdir -p deps; echo one >deps/f"
	p.run(spec, "Cache deps-protected: published as generation 1", "201 Created")
	// Whatever was saved does not change any more.
	spec.Script = []string{"head -1 deps/f; md5sum <deps/f; sleep 1; md5sum <deps/f"}
	log := p.run(spec, "\none\n")
	sums := strings.Fields(log[strings.Index(log, "\none\n")+5:])
	require.Equal(t, sums[0], sums[2])
	spec.Hooks = []gitlab.Hook{{Name: "pre_get_sources_script", Script: []string{"mkdir -p \"$CI_PROJECT_DIR\"; " + leave}}}
	spec.Script = []string{"cat README"}
	p.run(spec, "The runner's own script serves cache: the working tree is in use", "\nread me\n")
}

// TestCancelledJobSavesNothing cancels jobs and lets them reach their time-outs.
func TestCancelledJobSavesNothing(t *testing.T) {
	p := newProject(t, files)
	spec := gitlab.JobSpec{
		Image: image(images.Git), Cache: list("deps"), Variables: variables("BERTH_CACHE_1", "id=m,target=/m"),
		Script: []string{"mkdir -p deps; cat deps/f /m/f || true; echo first | tee deps/f /m/f"},
	}
	p.run(spec)
	slow := spec
	slow.Script = []string{"echo second | tee deps/f /m/f; echo begun; sleep 1000"}
	late := slow
	late.Timeout = 5 * time.Second
	cancelled, dropped, timedOut := p.start(slow), p.start(slow), p.start(late)
	for _, j := range []*gitlab.Job{cancelled, dropped} {
		require.NoError(t, j.WaitLog(t.Context(), "begun"))
	}
	cancelled.Cancel()
	dropped.ForceCancel()
	require.Equal(t, gitlab.Canceled, end(t, cancelled))
	require.Equal(t, gitlab.Failed, end(t, timedOut))
	require.NoError(t, node.AwaitGone(t.Context(), dropped.ID))
	failed := spec
	failed.Script = []string{"echo third | tee deps/f /m/f; false"}
	p.fail(failed, "Cache m: not published: the job has not succeeded")
	p.run(spec, "\nfirst\nfirst\n")
}
