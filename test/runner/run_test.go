package runner_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// serverless is a job without a repository, for use without a server.
func serverless(script ...string) *gitlab.Payload {
	return &gitlab.Payload{
		ID: 1, Token: "token", JobInfo: gitlab.JobInfo{Name: "job", ProjectID: 1},
		GitInfo:    gitlab.GitInfo{RepoURL: "http://gitlab.test/group/project.git", Ref: "main", SHA: strings.Repeat("0", 40)},
		RunnerInfo: gitlab.RunnerInfo{Timeout: 60},
		Variables:  []gitlab.Variable{{Key: "GIT_STRATEGY", Value: "none"}, {Key: "SECRET", Value: "hidden", Masked: true}},
		Steps:      []gitlab.Step{{Name: "script", Script: script}},
	}
}

func bareRunner(t *testing.T) runner.Runner {
	t.Helper()
	bare, err := runner.Bare(t.TempDir())
	require.NoError(t, err)
	bare.GracefulKillTimeout, bare.ForceKillTimeout = 5, 5
	return runner.Runner{Name: "bare", Executor: "custom", Custom: bare}
}

func calls(result runner.Result) string {
	var names []string
	for _, c := range result.Calls {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
}

func TestRun(t *testing.T) {
	var log strings.Builder
	result := runner.Run(t.Context(), bareRunner(t), serverless("echo hello $SECRET"), &log, runner.DefaultTiming)
	require.Equal(t, "success", result.State, log.String())
	require.Contains(t, log.String(), "hello [MASKED]\n")
	require.Equal(t, "config, run prepare_script, run get_sources, run build_script, run cleanup_file_variables", calls(result))
	for _, c := range result.Calls {
		require.Positive(t, c.Took)
		require.Less(t, c.Took, result.Took)
	}
}

// TestRunRetriesPrepare has a prepare that fails until its third try.
func TestRunRetriesPrepare(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "prepare")
	script := "#!/bin/sh\necho >>" + dir + "/tries\n[ $(wc -l <" + dir + "/tries) = 3 ] || exit $SYSTEM_FAILURE_EXIT_CODE\n"
	require.NoError(t, os.WriteFile(file, []byte(script), 0o755))
	config := bareRunner(t)
	config.Custom.PrepareExec, config.Custom.CleanupExec = file, "/bin/true"
	timing := runner.DefaultTiming
	timing.PrepareRetry = time.Millisecond
	var log strings.Builder
	result := runner.Run(t.Context(), config, serverless("true"), &log, timing)
	require.Equal(t, "success", result.State, log.String())
	require.True(t, strings.HasPrefix(calls(result), "config, prepare, cleanup, config, prepare, cleanup, config, prepare, run "), calls(result))
	require.Contains(t, log.String(), "Preparation failed: exit status 2")
}

// trigger is a log that calls f once text is in it.
type trigger struct {
	strings.Builder
	text string
	f    func()
}

func (t *trigger) Write(p []byte) (int, error) {
	n, err := t.Builder.Write(p)
	if strings.Contains(t.String(), t.text) {
		t.f()
	}
	return n, err
}

// TestRunDropped ends the context while the script runs.
func TestRunDropped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	log := &trigger{text: "\nstarted\n", f: cancel}
	result := runner.Run(ctx, bareRunner(t), serverless("echo started", "sleep 600"), log, runner.DefaultTiming)
	require.Equal(t, "failed", result.State)
	require.Equal(t, "canceled", result.Error)
	require.Less(t, result.Took, 30*time.Second)
	require.NotContains(t, calls(result), "cleanup_file_variables")
}

// TestMaskingAcrossWrites feeds a masked value in pieces.
func TestMaskingAcrossWrites(t *testing.T) {
	var log strings.Builder
	result := runner.Run(t.Context(), bareRunner(t),
		serverless(`for c in a h i d d e n z h i d; do printf $c; sleep 0.01; done; echo`), &log, runner.DefaultTiming)
	require.Equal(t, "success", result.State)
	require.Contains(t, log.String(), "a[MASKED]zhid\n")
}

func TestDocker(t *testing.T) {
	host, image := os.Getenv("TEST_DOCKER_HOST"), os.Getenv("TEST_DOCKER_IMAGE")
	if host == "" || image == "" {
		t.Skip("TEST_DOCKER_HOST and TEST_DOCKER_IMAGE, an image with git and a shell, are not both set")
	}
	standIn, err := runner.Build(t.Context(), t.TempDir())
	require.NoError(t, err)
	defer func(real string) { program = real }(program)
	program = standIn
	b := newBench(t, nil, func(r *runner.Runner) {
		r.Executor = "docker"
		r.Docker = &runner.Docker{Host: host, Image: image, HelperImage: image, Volumes: []string{"/cache"}, NetworkMode: "host"}
	})
	j, state := b.run(t, gitlab.JobSpec{
		Script:      []string{"cat README", "mkdir deps && touch deps/x", "(exit 7)"},
		AfterScript: []string{"echo after $CI_JOB_STATUS"},
		Cache:       []gitlab.Cache{{Key: "k", Paths: []string{"deps"}, When: "always"}},
	})
	require.Equal(t, gitlab.Failed, state, j.Log())
	require.Equal(t, 7, j.ExitCode())
	require.Contains(t, j.Log(), "\nread me\n")
	require.Contains(t, j.Log(), "after failed\n")
	require.Contains(t, j.Log(), "Created cache")

	canceled := b.enqueue(t, gitlab.JobSpec{
		Script:      []string{"while :; do echo tick; sleep 0.2; done"},
		AfterScript: []string{"echo after $CI_JOB_STATUS"},
		Cache:       []gitlab.Cache{{Key: "k", Paths: []string{"deps"}}},
	})
	require.NoError(t, canceled.WaitLog(t.Context(), "tick"))
	canceled.Cancel()
	require.Equal(t, gitlab.Canceled, end(t, canceled))
	require.Contains(t, canceled.Log(), "Successfully extracted cache")
	require.Contains(t, canceled.Log(), "after canceled\n")
}
