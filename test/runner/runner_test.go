package runner_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// program is the runner under test.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "runner")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if program, err = runner.Program(context.Background(), dir); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// bench is a server with a project and a runner with the bare executor.
type bench struct {
	*gitlab.Server
	project *gitlab.Project
}

func newBench(t *testing.T, files fstest.MapFS, change ...func(*runner.Runner)) bench {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv, err := gitlab.New(l)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, srv.Close()) })
	if files == nil {
		files = fstest.MapFS{"README": {Data: []byte("read me\n")}}
	}
	project, err := srv.AddProject("group/project", files)
	require.NoError(t, err)

	dir := t.TempDir()
	bare, err := runner.Bare(dir)
	require.NoError(t, err)
	bare.GracefulKillTimeout, bare.ForceKillTimeout = 5, 5
	config := runner.Runner{
		Name: "bench", ID: 1, URL: srv.URL(), Token: srv.AddRunner(), Executor: "custom", Custom: bare,
	}
	for _, f := range change {
		f(&config)
	}
	p, err := runner.Start(program, dir, runner.Config{Concurrent: 2, CheckInterval: 1, Runners: []runner.Runner{config}}, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		err := p.Stop(ctx)
		if t.Failed() || err != nil {
			log, _ := os.ReadFile(filepath.Clean(p.LogFile))
			t.Logf("runner: %v\n%s", err, log)
		}
		require.NoError(t, err)
	})
	return bench{srv, project}
}

func (b bench) enqueue(t *testing.T, spec gitlab.JobSpec) *gitlab.Job {
	t.Helper()
	spec.Project = b.project
	if spec.Name == "" {
		spec.Name = "job"
	}
	j, err := b.Enqueue(spec)
	require.NoError(t, err)
	return j
}

// end waits for a job's end.
func end(t *testing.T, j *gitlab.Job) gitlab.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	state, err := j.Wait(ctx)
	if err != nil || testing.Verbose() {
		t.Logf("job %s: %s %s\n%s", j.Name(), state, j.FailureReason(), j.Log())
	}
	require.NoError(t, err)
	return state
}

func (b bench) run(t *testing.T, spec gitlab.JobSpec) (*gitlab.Job, gitlab.State) {
	t.Helper()
	j := b.enqueue(t, spec)
	return j, end(t, j)
}

func TestCheckout(t *testing.T) {
	b := newBench(t, nil)
	for range 2 { // the second fetches into what the first left
		j, state := b.run(t, gitlab.JobSpec{Script: []string{"cat README", "git log --oneline | wc -l", "pwd"}})
		require.Equal(t, gitlab.Success, state)
		require.Contains(t, j.Log(), "\nread me\n")
		require.Contains(t, j.Log(), "builds/group/project\n")
	}
}

func TestVariables(t *testing.T) {
	b := newBench(t, nil)
	j, state := b.run(t, gitlab.JobSpec{
		Variables: []gitlab.Variable{
			{Key: "QUOTES", Value: "it's \"q\" \\ `x` $(y)\nsecond é", Raw: true},
			{Key: "EXPANDED", Value: "in $CI_PROJECT_PATH", Public: true},
			{Key: "KUBECONFIG", Value: "file's\ncontent\n", File: true},
			{Key: "SECRET", Value: "s3cret-value", Masked: true},
		},
		Script: []string{
			`printf '%s|\n' "$QUOTES" "$EXPANDED"`,
			`cat "$KUBECONFIG"; echo "$KUBECONFIG"`,
			`echo "<$SECRET>"`,
			`echo LATER=from-env >>"$GITLAB_ENV"`,
		},
		AfterScript: []string{`echo "later $LATER status $CI_JOB_STATUS"`},
	})
	require.Equal(t, gitlab.Success, state)
	for _, text := range []string{
		"it's \"q\" \\ `x` $(y)\nsecond é|\nin group/project|\n",
		"file's\ncontent\n",
		"project.tmp/KUBECONFIG\n",
		"<[MASKED]>\n",
		"later from-env status success\n",
	} {
		require.Contains(t, j.Log(), text)
	}
}

func TestFailure(t *testing.T) {
	b := newBench(t, nil)
	j, state := b.run(t, gitlab.JobSpec{
		Script:      []string{"echo partial > report", "(exit 7)"},
		AfterScript: []string{"echo after $CI_JOB_STATUS"},
		Artifacts:   []gitlab.Artifact{{Paths: []string{"report"}, When: "on_failure"}, {Paths: []string{"README"}, Type: "metadata"}},
	})
	require.Equal(t, gitlab.Failed, state)
	require.Equal(t, "script_failure", j.FailureReason())
	require.Equal(t, 7, j.ExitCode())
	require.Contains(t, j.Log(), "after failed\n")
	_, err := j.Artifact("archive")
	require.NoError(t, err)
	_, err = j.Artifact("metadata") // its when is on_success
	require.ErrorIs(t, err, gitlab.ErrNoArtifact)
}

func TestCache(t *testing.T) {
	b := newBench(t, nil)
	use := gitlab.JobSpec{
		Script: []string{"ls -A deps 2>/dev/null || echo cold", "mkdir -p deps; date +%N > deps/$CI_JOB_ID; ln -sfn target deps/link; chmod 700 deps/$CI_JOB_ID"},
		Cache:  []gitlab.Cache{{Key: "$CI_COMMIT_REF_SLUG", Paths: []string{"deps/"}, FallbackKeys: []string{"other"}}},
	}
	first, state := b.run(t, use)
	require.Equal(t, gitlab.Success, state)
	require.Contains(t, first.Log(), "Checking cache for main-protected...")
	require.Contains(t, first.Log(), "Checking cache for other-protected...")
	require.Contains(t, first.Log(), "\ncold\n")
	require.Contains(t, first.Log(), "Created cache")

	use.Variables = []gitlab.Variable{{Key: "GIT_STRATEGY", Value: "clone"}}
	use.Script = append([]string{"stat -c '%a %N' deps/*"}, use.Script...)
	second, state := b.run(t, use)
	require.Equal(t, gitlab.Success, state)
	require.Contains(t, second.Log(), "Successfully extracted cache")
	require.Contains(t, second.Log(), "700 'deps/")
	require.Contains(t, second.Log(), "'deps/link' -> 'target'")
}

func TestPipeline(t *testing.T) {
	b := newBench(t, nil)
	pipeline, err := gitlab.ParsePipeline([]byte(`
stages: [build, test]
variables: {GREETING: hello}
make:
  stage: build
  script:
    - mkdir out && echo "$GREETING" > out/a && echo no > out/b
  artifacts: {paths: [out/], exclude: [out/b]}
check:
  stage: test
  script: [cat out/a, test ! -e out/b]
never:
  stage: test
  when: on_failure
  script: "false"
`))
	require.NoError(t, err)
	jobs, err := b.EnqueuePipeline(b.project, "main", pipeline)
	require.NoError(t, err)
	require.Len(t, jobs, 3)
	require.Equal(t, gitlab.Success, end(t, jobs[0]))
	require.Equal(t, gitlab.Success, end(t, jobs[1]))
	require.Equal(t, gitlab.Skipped, end(t, jobs[2]))
	require.Contains(t, jobs[1].Log(), "\nhello\n")
}

func TestCancel(t *testing.T) {
	b := newBench(t, nil)
	j := b.enqueue(t, gitlab.JobSpec{
		Script:      []string{"echo started", "for i in $(seq 600); do echo tick; sleep 0.1; done", "echo not reached"},
		AfterScript: []string{"echo after $CI_JOB_STATUS"},
	})
	require.NoError(t, j.WaitLog(t.Context(), "tick"))
	j.Cancel()
	require.Equal(t, gitlab.Canceled, end(t, j))
	require.Contains(t, j.Log(), "after canceled\n")
	require.NotContains(t, j.Log(), "\nnot reached")
}

func TestForceCancel(t *testing.T) {
	b := newBench(t, nil)
	mark := filepath.Join(t.TempDir(), "after")
	j := b.enqueue(t, gitlab.JobSpec{
		Script:      []string{"for i in $(seq 600); do echo tick; sleep 0.1; done"},
		AfterScript: []string{"touch " + mark},
	})
	require.NoError(t, j.WaitLog(t.Context(), "tick"))
	j.ForceCancel()
	next, state := b.run(t, gitlab.JobSpec{Script: []string{"echo next"}, Name: "next"})
	require.Equal(t, gitlab.Success, state, next.Log())
	require.NoFileExists(t, mark)
}

func TestTimeout(t *testing.T) {
	b := newBench(t, nil)
	j, state := b.run(t, gitlab.JobSpec{
		Script:      []string{"echo started", "sleep 600"},
		AfterScript: []string{"echo not reached"},
		Timeout:     2 * time.Second,
	})
	require.Equal(t, gitlab.Failed, state)
	require.Equal(t, "job_execution_timeout", j.FailureReason())
	require.Contains(t, j.Log(), "\nstarted\n")
	require.NotContains(t, j.Log(), "not reached")
	require.Less(t, j.Duration(), 20*time.Second)
}

// TestStubborn has a script that ignores SIGTERM: it is killed, with all that
// it started, when its time to end in peace is over.
func TestStubborn(t *testing.T) {
	b := newBench(t, nil, func(r *runner.Runner) { r.Custom.GracefulKillTimeout = 1 })
	pid := filepath.Join(t.TempDir(), "pid")
	j, state := b.run(t, gitlab.JobSpec{
		Script:  []string{"trap '' TERM; echo $BASHPID >" + pid + "; while :; do sleep 0.1; done"},
		Timeout: 2 * time.Second,
	})
	require.Equal(t, gitlab.Failed, state)
	require.Equal(t, "job_execution_timeout", j.FailureReason())
	text, err := os.ReadFile(pid)
	require.NoError(t, err)
	// Gone, or dead and not yet reaped by whoever inherited it.
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/stat")
	require.True(t, errors.Is(err, os.ErrNotExist) || strings.Contains(string(stat), ") Z "), string(stat))
}

func TestLFSAndSubmodules(t *testing.T) {
	b := newBench(t, nil)
	sub, err := b.AddProject("group/deep/sub", fstest.MapFS{"file": {Data: []byte("from below\n")}})
	require.NoError(t, err)
	pointer, err := b.project.AddLFS([]byte("large content\n"))
	require.NoError(t, err)
	_, err = b.project.Commit(gitlab.DefaultBranch, fstest.MapFS{
		".gitattributes": {Data: []byte("*.bin filter=lfs diff=lfs merge=lfs -text\n")},
		"large.bin":      {Data: pointer},
	})
	require.NoError(t, err)
	require.NoError(t, b.project.AddSubmodule("below", sub))
	if exec.Command("git", "lfs", "version").Run() != nil {
		t.Skip("git-lfs is not installed")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	j, state := b.run(t, gitlab.JobSpec{
		Variables: []gitlab.Variable{{Key: "GIT_SUBMODULE_STRATEGY", Value: "recursive"}},
		Hooks:     []gitlab.Hook{{Name: "pre_get_sources_script", Script: []string{"export HOME=" + home, "git lfs install"}}},
		Script:    []string{"cat large.bin below/file"},
	})
	require.Equal(t, gitlab.Success, state, j.Log())
	require.Contains(t, j.Log(), "large content\nfrom below\n")
}

func TestLargeLog(t *testing.T) {
	b := newBench(t, nil, func(r *runner.Runner) { r.OutputLimit = 1024 })
	j, state := b.run(t, gitlab.JobSpec{Script: []string{"seq -f %0100.0f 20000", "echo the end"}})
	require.Equal(t, gitlab.Success, state)
	require.Contains(t, j.Log(), "exceeded limit")
	require.Greater(t, len(j.Log()), 500_000)
	require.Less(t, len(j.Log()), 1<<21)
}
