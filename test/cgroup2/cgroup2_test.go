// Package cgroup2 runs jobs on a host with cgroup v2 and looks at what they
// get of it. Its tests say that they are skipped on other hosts: there, `make
// test-cgroup2` runs them in a virtual machine.
package cgroup2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// Shared by all tests; nil where missing says why.
var (
	missing  string
	registry *images.Registry
	node     *testnode.Node
	server   *gitlab.Server
	project  *gitlab.Project
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
	if missing = testnode.Missing(); missing == "" && cgroups.Mode() != cgroups.Unified {
		missing = "the host does not have cgroup v2 alone: make test-cgroup2"
	}
	if missing != "" {
		return m.Run(), nil
	}
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "berth-cgroup2")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	programs, err := build(ctx, dir)
	if err != nil {
		return 0, err
	}
	if registry, err = images.Serve(ctx); err != nil {
		return 0, err
	}
	defer registry.Close()
	if node, err = testnode.Start(ctx, testnode.Config{Programs: programs, Images: registry, Change: limit}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, node.Stop(ctx)) }()
	if server, err = node.GitLab(); err != nil {
		return 0, err
	}
	defer server.Close()
	if project, err = server.AddProject("group/project", fstest.MapFS{"README": {Data: []byte("read me\n")}}); err != nil {
		return 0, err
	}
	r, err := runner.Start(programs.Runner, dir, runner.Config{
		Concurrent: 2, CheckInterval: 1,
		Runners: []runner.Runner{node.Runner("default", server.URL(), server.AddRunner("default"))},
	}, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Stop(ctx)) }()
	return m.Run(), nil
}

// build makes the programs, unless PROGRAMS is a directory that has them.
func build(ctx context.Context, dir string) (testnode.Programs, error) {
	if made := os.Getenv("PROGRAMS"); made != "" {
		return testnode.Programs{
			Berth: filepath.Join(made, "berth"), Berthd: filepath.Join(made, "berthd"), Runner: filepath.Join(made, "runner"),
		}, nil
	}
	return testnode.Build(ctx, dir)
}

func limit(c *config.Config) {
	p := testnode.Profile(registry)
	p.Memory, p.CPUs, p.PIDs = 64<<20, 1.5, 200
	c.Profiles = map[string]executor.Profile{"default": p}
}

// start starts a job.
func start(t *testing.T, script ...string) *gitlab.Job {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	j, err := server.Enqueue(gitlab.JobSpec{
		Project: project, Name: t.Name(), Tags: []string{"default"}, Image: gitlab.Image{Name: registry.Image(images.Busybox)},
		Variables: []gitlab.Variable{{Key: "FF_ENABLE_BASH_EXIT_CODE_CHECK", Value: "1", Public: true}},
		Script:    append([]string{"cat README"}, script...),
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("job:\n%s\nberthd:\n%s", j.Log(), node.Log())
		}
	})
	return j
}

// end waits for a job's end, and for all that it had to be gone.
func end(t *testing.T, j *gitlab.Job) gitlab.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	state, err := j.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, node.AwaitClean(t.Context()))
	return state
}

// read reads a file of the kernel's.
func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// TestJob looks at a job's cgroup while berthd is killed, and started again.
func TestJob(t *testing.T) {
	j := start(t,
		"cat /proc/self/cgroup", "cd /sys/fs/cgroup; cat memory.max cpu.max", "mkdir x || echo read-only",
		"while ! [ -e /tmp/go ]; do echo tick; sleep 0.1; done")
	require.NoError(t, j.WaitLog(t.Context(), "tick"))
	jobs, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	dir := filepath.Join("/sys/fs/cgroup", node.Config.Limits.Cgroup, jobs[0].Key)
	look := func() {
		for file, want := range map[string]string{
			"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "200",
			"cgroup.procs":     "", // all are in containers' cgroups
			"build/memory.max": "67108864", "build/cpu.max": "150000 100000",
		} {
			require.Equal(t, want, read(t, dir, file), file)
		}
		for _, container := range []string{"build", "helper"} {
			require.NotEmpty(t, read(t, dir, container, "cgroup.procs"))
		}
	}
	look()

	require.NoError(t, node.KillDaemon())
	require.NoError(t, node.StartDaemon(t.Context()))
	require.NoError(t, node.StopDaemon(t.Context()))
	require.NoError(t, node.StartDaemon(t.Context()))
	jobs, err = node.Client.Jobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	look()

	build := strings.Fields(read(t, dir, "build", "cgroup.procs"))[0]
	require.NoError(t, os.WriteFile(filepath.Join("/proc", build, "root/tmp/go"), nil, 0o600))
	require.Equal(t, gitlab.Success, end(t, j))
	// The kernel of the machine is older than most, too.
	require.Contains(t, j.Log(), "Working tree: kept for the jobs that come")
	require.NoDirExists(t, dir)
	// The container sees its own cgroup alone, and cannot change it.
	require.Contains(t, j.Log(), "\nread me\n")
	require.Contains(t, j.Log(), "\n0::/\n")
	require.Contains(t, j.Log(), "\n67108864\n150000 100000\n")
	require.Contains(t, j.Log(), "\nread-only\n")
}

func TestOutOfMemory(t *testing.T) {
	// tail keeps all of a line that never ends.
	j := start(t, "head -c 200m /dev/zero | tail | wc -c", "echo not reached")
	require.Equal(t, gitlab.Failed, end(t, j))
	require.Equal(t, 137, j.ExitCode())
	require.Contains(t, j.Log(), "the job ran out of memory (limit 64MiB)")
}
