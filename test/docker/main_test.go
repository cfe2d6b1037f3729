// Package docker tests the jobs' docker on a real node: what clients do with
// it, what jobs must not do with it, and what is left of it.
package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/clients"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// Shared by all tests; nil where missing says why.
var (
	missing  string
	programs testnode.Programs
	registry *images.Registry
	node     *testnode.Node
	server   *gitlab.Server
	projects = map[string]*gitlab.Project{}
	cli      string // the docker client
	runners  = map[string]*runner.Process{}
	scratch  string
	starting sync.Mutex
)

// Directories below scratch: work has the same path in jobs, plugins are those
// of the docker client.
const (
	work    = "work"
	plugins = "docker-config/cli-plugins"
)

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (status int, err error) {
	if missing = testnode.Missing(); missing != "" {
		return m.Run(), nil
	}
	ctx := context.Background()
	if scratch, err = os.MkdirTemp("", "berth-docker"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	for _, dir := range []string{"given", work, plugins} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o777); err != nil {
			return 0, err
		}
	}
	if programs, err = testnode.Build(ctx, scratch); err != nil {
		return 0, err
	}
	if cli, err = clients.Docker(ctx, scratch); err != nil {
		return 0, err
	}
	if registry, err = images.Serve(ctx); err != nil {
		return 0, err
	}
	defer registry.Close()
	if node, err = testnode.Start(ctx, testnode.Config{Programs: programs, Images: registry, Docker: true, Change: profiles}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, node.Stop(ctx)) }()
	if server, err = node.GitLab(); err != nil {
		return 0, err
	}
	defer server.Close()
	defer func() {
		for _, p := range runners {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			err = errors.Join(err, p.Stop(ctx))
			cancel()
		}
	}()
	status = m.Run()
	err = node.AwaitClean(ctx)
	if os.Getenv("BERTH_TEST_LOG") != "" {
		fmt.Fprintln(os.Stderr, node.Log())
	}
	return status, err
}

func profiles(c *config.Config) {
	defaults := testnode.Profile(registry)
	shared := filepath.Join(scratch, work)
	defaults.Mounts = []string{
		scratch + "/given:/given:ro", filepath.Join(scratch, plugins) + ":/usr/local/lib/docker/cli-plugins:ro",
		shared + ":" + shared,
	}
	defaults.Mounts = append(defaults.Mounts, cli+":/usr/local/bin/docker:ro")
	without := defaults
	without.Docker = false
	kind := defaults
	// Of the names below, jobs can have all but the first registry themselves.
	kind.DockerPrivilegedImages = []string{registry.Address + "/test/web:*", "localhost:*/**", "127.0.0.1:*/**", "docker:*/**", "10.*:*/**"}
	kind.Mounts = append(slices.Clone(defaults.Mounts), c.Runtime.Path+":/runtime:ro")
	confined := defaults
	confined.Egress.Default = "deny"
	c.Profiles = map[string]executor.Profile{"default": defaults, "without": without, "kind": kind, "confined": confined}
}

// projectOf makes a project of a test's own: images that jobs make stay for the
// jobs that come.
func projectOf(t testing.TB, name string) *gitlab.Project {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	path := strings.ToLower(test) + "/" + name
	starting.Lock()
	defer starting.Unlock()
	if projects[path] == nil {
		made, err := server.AddProject(path, fstest.MapFS{"README": {Data: []byte("read me\n")}, "src/main": {Data: []byte("content of main\n")}})
		require.NoError(t, err)
		projects[path] = made
	}
	return projects[path]
}

// enqueue makes a job for the runner of a profile.
func enqueue(t testing.TB, profile string, spec gitlab.JobSpec) *gitlab.Job {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	if spec.Project == nil {
		spec.Project = projectOf(t, "project")
	}
	if spec.Name == "" {
		spec.Name = t.Name()
	}
	if spec.Image.Name == "" {
		spec.Image.Name = registry.Image(images.Git)
	}
	spec.Tags = []string{profile}
	j, err := server.Enqueue(spec)
	require.NoError(t, err)
	starting.Lock()
	defer starting.Unlock()
	if runners[profile] == nil {
		program := programs.Runner
		dir := filepath.Join(scratch, "runner-"+profile)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		r := node.Runner(profile, server.URL(), server.AddRunner(profile))
		runners[profile], err = runner.Start(program, dir, runner.Config{Concurrent: 8, CheckInterval: 1, Runners: []runner.Runner{r}}, []string{"TMPDIR=" + dir})
		require.NoError(t, err)
	}
	return j
}

// ended waits for a job's end, and shows its log when the test fails.
func ended(t testing.TB, j *gitlab.Job) gitlab.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	state, err := j.Wait(ctx)
	if t.Failed() || err != nil || state != gitlab.Success {
		t.Logf("job %d: %s %s\n%s", j.ID, state, j.FailureReason(), j.Log())
	}
	require.NoError(t, err)
	return state
}

// a job that waits, to be looked at from outside.
type job struct {
	*gitlab.Job
	t         testing.TB
	admission *api.Admission
	released  bool
}

// hold starts a job that runs until the test ends.
func hold(t testing.TB, profile string, spec gitlab.JobSpec) *job {
	t.Helper()
	spec.Script = append(spec.Script, "echo the job is up", "while [ ! -e /builds/go ]; do sleep 0.1; done")
	j := &job{t: t, Job: enqueue(t, profile, spec)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := j.WaitLog(ctx, "\nthe job is up\n"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, j.Log(), node.Log())
	}
	all, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	for _, one := range all {
		if one.Identity.ID == j.ID {
			j.admission, err = node.Client.Admission(t.Context(), one.Key)
			require.NoError(t, err)
		}
	}
	require.NotNil(t, j.admission)
	t.Cleanup(j.release)
	return j
}

// release lets the job end.
func (j *job) release() {
	if j.released {
		return
	}
	j.released = true
	require.NoError(j.t, os.WriteFile(filepath.Join(j.admission.Dirs.Builds, "go"), nil, 0o644))
	require.Equal(j.t, gitlab.Success, ended(j.t, j.Job))
}

// socket is the job's, on the node.
func (j *job) socket() string { return filepath.Join(j.admission.Docker.Dir, "run", "docker.sock") }

// identity is whose job it is.
func (j *job) identity() executor.Identity {
	all, err := node.Client.Jobs(j.t.Context())
	require.NoError(j.t, err)
	for _, one := range all {
		if one.Identity.ID == j.ID {
			return one.Identity
		}
	}
	j.t.Fatal("the job is gone")
	return executor.Identity{}
}

// docker calls the docker client with the job's endpoint.
func (j *job) docker(args ...string) (string, error) {
	return client(j.t, "unix://"+j.socket(), "", args...)
}

func client(t testing.TB, host, stdin string, args ...string) (string, error) {
	t.Helper()
	return command(t, host, "", stdin, nil, args...)
}

// command calls the docker client in a directory.
func command(t testing.TB, host, dir, stdin string, env []string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, cli, args...)
	cmd.Env = slices.Concat(os.Environ(), []string{"DOCKER_HOST=" + host, "DOCKER_CONFIG=" + filepath.Join(scratch, "docker-config")}, env)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// must calls the docker client and fails if it fails.
func (j *job) must(args ...string) string {
	j.t.Helper()
	out, err := j.docker(args...)
	if err != nil {
		j.t.Fatalf("docker %s: %v\n%s\n%s", strings.Join(args, " "), err, out, tail(node.Log()))
	}
	return strings.TrimSpace(out)
}

func tail(text string) string { return text[max(0, len(text)-8000):] }
