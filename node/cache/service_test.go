package cache_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// node is a service on an engine of its own. Its jobs are directories: what their scripts would do the test does.
type node struct {
	*testing.T
	engine  *enginetest.Engine
	service *cache.Service
	jobs    map[string]*job
	count   int
}

func newNode(t *testing.T) *node {
	n := &node{T: t, engine: enginetest.New(t), jobs: map[string]*job{}}
	n.service = cache.New(n.engine.Engine, n.logger())
	t.Cleanup(func() {
		for _, j := range n.jobs {
			j.release()
		}
	})
	return n
}

func (n *node) logger() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(n.Output())
	return logrus.NewEntry(l)
}

// restart is what a crash of berthd and its next start are to caches.
func (n *node) restart() {
	n.Helper()
	n.engine.Reopen()
	n.service = cache.New(n.engine.Engine, n.logger())
	var survivors []cache.Survivor
	for _, j := range n.jobs {
		j.crash = nil
		survivors = append(survivors, cache.Survivor{
			Key: j.key, Dir: j.dir, Builds: j.builds, Record: j.saved(), Save: j.save, Ended: j.ended,
		})
	}
	require.NoError(n, n.service.Retake(n.Context(), survivors))
}

// identity is that of a job of a protected ref.
var identity = executor.Identity{Server: "https://gitlab.example.com", ProjectID: 1, Project: "group/project", Protected: true}

// request asks for nothing.
func request(sha string) executor.Request {
	id := identity
	id.SHA = sha
	return executor.Request{Job: id, Sources: executor.Sources{Dir: "group/project", Strategy: "fetch"}, Variables: map[string]string{}}
}

func asking(r executor.Request, specs ...string) executor.Request {
	for i, s := range specs {
		r.Mounts = append(r.Mounts, executor.CacheMount{Variable: fmt.Sprintf("BERTH_CACHE_%d", i), Number: i, Spec: s})
	}
	return r
}

type job struct {
	*node
	key, dir, builds string
	request          executor.Request
	policy           executor.CachePolicy
	journal          []byte
	ended            bool
	lines            []string
	caches           api.Caches
	// crash, if set, is called before and after each write to the journal.
	crash func()
}

func (n *node) job(r executor.Request) *job {
	n.count++
	j := &job{node: n, key: fmt.Sprintf("j%d-0123abcd", n.count), request: r}
	j.dir = filepath.Join(filepath.Dir(n.engine.Config.Root), "jobs-"+filepath.Base(n.engine.Config.Root), j.key)
	j.builds = filepath.Join(j.dir, "builds")
	j.policy = executor.DefaultProfile().Cache
	require.NoError(n, os.MkdirAll(j.builds, 0o755))
	return j
}

func (j *job) save(r cache.Record) error {
	if j.crash != nil {
		j.crash()
	}
	var err error
	if j.journal, err = json.Marshal(r); err != nil {
		return err
	}
	if j.crash != nil {
		j.crash()
	}
	return nil
}

// saved is the record as a berthd that starts reads it.
func (j *job) saved() (r cache.Record) {
	j.Helper()
	require.NoError(j, json.Unmarshal(j.journal, &r))
	return r
}

func (j *job) say(line string) { j.lines = append(j.lines, line) }

func (j *job) log() string { return strings.Join(j.lines, "\n") }

func (j *job) tryAdmit() (err error) {
	j.jobs[j.key] = j
	j.caches, err = j.service.Admit(j.Context(), cache.Start{
		Key: j.key, Request: j.request, Policy: j.policy, Dir: j.dir, Builds: j.builds, Save: j.save,
	}, j.say)
	return err
}

func (j *job) admit() *job {
	j.Helper()
	require.NoError(j, j.tryAdmit())
	return j
}

func (j *job) step(name string, step api.CacheStep) *api.CacheResult {
	j.Helper()
	result, err := j.service.Step(j.Context(), j.key, name, step, j.say)
	require.NoError(j, err)
	j.lines = append(append(j.lines, result.Restored...), result.Lines...)
	return result
}

// sources does all until the job's script, as the stage does.
func (j *job) sources() *job {
	j.Helper()
	for range 3 {
		j.step(api.StepFetch, api.CacheStep{})
		j.getSources()
		if !j.checkout().Again {
			return j
		}
	}
	j.Fatal("the tree is lost again and again")
	return nil
}

const token = "glcbt-64_token"

// getSources leaves what git would.
func (j *job) getSources() {
	j.Helper()
	j.write(".git/config", "url = http://gitlab-ci-token:"+token+"@host/group/project.git\n")
	j.write(".git/HEAD", j.request.Job.SHA+"\n")
	j.write("main", "main at "+j.request.Job.SHA+"\n")
}

func (j *job) checkout() *api.CacheResult {
	j.Helper()
	content := map[string]string{}
	for _, name := range j.caches.Content {
		if !strings.Contains(name, "missing") {
			content[name] = strings.Repeat("0a", 20)
		}
	}
	return j.step(api.StepCheckout, api.CacheStep{Content: content})
}

func (j *job) archive(success bool) {
	j.Helper()
	j.step(api.StepSave, api.CacheStep{Success: success})
}

func (j *job) finish(success bool) {
	j.Helper()
	j.step(api.StepFinish, api.CacheStep{Success: success})
}

// end is the rest of a job that succeeds.
func (j *job) end() {
	j.Helper()
	if len(j.request.Caches) > 0 {
		j.archive(true)
	}
	j.finish(true)
	j.release()
}

// release may be done any number of times.
func (j *job) release() {
	j.Helper()
	require.NoError(j, j.service.Release(context.WithoutCancel(j.Context()), j.key))
	delete(j.jobs, j.key)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(j.dir))
	require.NoError(j, err)
	require.Empty(j, mounts, "of %s", j.key)
}

func (j *job) path(name string) string { return filepath.Join(j.builds, j.request.Sources.Dir, name) }

func (j *job) write(name, text string) {
	j.Helper()
	require.NoError(j, os.MkdirAll(filepath.Dir(j.path(name)), 0o755))
	require.NoError(j, os.WriteFile(j.path(name), []byte(text), 0o644))
}

func (j *job) remove(name string) { j.Helper(); require.NoError(j, os.RemoveAll(j.path(name))) }

// mounted is the directory of a cache that is mounted at a target.
func (j *job) mounted(target string) string {
	j.Helper()
	for _, m := range j.caches.Mounts {
		if m.Target == target {
			return m.Source
		}
	}
	j.Fatalf("%s is not mounted", target)
	return ""
}

// tree is all files of a directory.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path) // it is below
		files[rel] = string(text)
		return err
	}))
	return files
}

// clean fails if the jobs, which are released, have left anything.
func (n *node) clean() {
	n.Helper()
	usage, err := n.engine.Generations().Usage(n.Context())
	require.NoError(n, err)
	for _, u := range usage {
		require.False(n, u.Held, "generations of %s", u.Key)
	}
	entries, err := os.ReadDir(filepath.Join(n.engine.Config.Root, "clones"))
	require.NoError(n, err)
	for _, e := range entries {
		require.Equal(n, "empty", e.Name(), "left in the directory of clones")
	}
	mounts, err := n.engine.Mounts().List(n.Context())
	require.NoError(n, err)
	for _, m := range mounts {
		require.Empty(n, m.Holders, m.Key)
	}
}

// wait is for what another goroutine does.
func wait[T any](t testing.TB, c <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came in time")
	}
	return got
}
