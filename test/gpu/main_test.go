//go:build cgo

// Package gpu runs jobs with GPUs end to end: on a node whose driver and GPUs
// are stood in for, but whose containers, device nodes and device cgroups are
// real; and, where there is one, on a real GPU.
package gpu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu/nvml/nvmltest"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/clients"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// plugins are those of the docker client, below dir.
const plugins = "cli-plugins"

// Of the machine that is stood in for, the last GPU is cut.
const (
	gpus      = 4
	instances = 2
)

// Shared by all tests; nil where missing says why.
var (
	missing  string
	dir      string
	programs testnode.Programs
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
	if missing = testnode.Missing(); missing != "" {
		return m.Run(), nil
	}
	ctx := context.Background()
	if dir, err = os.MkdirTemp("", "berth-gpu"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if programs, err = build(ctx); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Join(dir, plugins), 0o755); err != nil {
		return 0, err
	}
	if err := makeMachine(); err != nil {
		return 0, err
	}
	if registry, err = images.Serve(ctx); err != nil {
		return 0, err
	}
	defer registry.Close()
	if node, err = testnode.Start(ctx, testnode.Config{Programs: programs, Images: registry, Change: configure}); err != nil {
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
	var stopped error
	defer func() { err = errors.Join(err, stopped) }()
	for _, profile := range []string{"default", "privileged"} {
		own := filepath.Join(dir, "runner-"+profile)
		if err := os.Mkdir(own, 0o700); err != nil {
			return 0, err
		}
		r, err := runner.Start(programs.Runner, own, runner.Config{
			Concurrent: 4, CheckInterval: 1,
			Runners: []runner.Runner{node.Runner(profile, server.URL(), server.AddRunner(profile))},
		}, nil)
		if err != nil {
			return 0, err
		}
		defer func() { stopped = errors.Join(stopped, r.Stop(ctx)) }()
	}
	return m.Run(), nil
}

// build makes the programs, unless PROGRAMS is a directory that has them.
func build(ctx context.Context) (testnode.Programs, error) {
	if made := os.Getenv("PROGRAMS"); made != "" {
		dir = made
		return testnode.Programs{
			Berth: filepath.Join(made, "berth"), Berthd: filepath.Join(made, "berthd"), Runner: filepath.Join(made, "runner"),
		}, nil
	}
	const module = "gitlab.com/berth-ci/berth/"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir+"/", module+"cmd/berth-gpu", module+"test/cmd/gpudriver")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")
	if out, err := cmd.CombinedOutput(); err != nil {
		return testnode.Programs{}, fmt.Errorf("build berth-gpu: %w: %s", err, out)
	}
	if _, err := clients.Docker(ctx, dir); err != nil {
		return testnode.Programs{}, err
	}
	return testnode.Build(ctx, dir)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// needDocker skips a test where the programs came without a docker client.
func needDocker(t *testing.T) {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	if !exists(filepath.Join(dir, "docker")) {
		t.Skip("PROGRAMS has no docker client")
	}
}

func root() string { return filepath.Join(dir, "driver") }

// makeMachine makes the files of the driver.
func makeMachine() error {
	mig := map[int]int{gpus - 1: instances}
	if err := nvmltest.MakeRoot(root(), gpus, mig); err != nil {
		return err
	}
	machine, err := json.Marshal(map[string]any{"gpus": gpus, "mig": mig, "hook": filepath.Join(dir, "berth-gpu")})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root(), "gpus.json"), machine, 0o600)
}

func configure(c *config.Config) {
	c.GPU = config.GPU{Program: filepath.Join(dir, "gpudriver"), DriverRoot: root()}
	c.Docker.Enabled = true
	p, privileged := testnode.Profile(registry), testnode.Profile(registry)
	p.GPU.PerJob = 3
	if docker := filepath.Join(dir, "docker"); exists(docker) {
		p.Mounts = append(p.Mounts, docker+":/usr/local/bin/docker:ro", filepath.Join(dir, plugins)+":/usr/local/lib/docker/cli-plugins:ro")
	}
	privileged.PrivilegedImages, privileged.DockerPrivilegedImages = []string{"**"}, []string{"**"}
	privileged.Mounts = p.Mounts
	c.Profiles = map[string]executor.Profile{"default": p, "privileged": privileged}
}

// tell has GPUs tell something else of themselves.
func tell(t testing.TB, states map[string]nvmltest.State) {
	t.Helper()
	write(t, "state.json", states)
}

// report has GPUs report faults: numbers of GPUs, and their XIDs.
func report(t testing.TB, xids map[int]uint64) {
	t.Helper()
	var faults []map[string]any
	for g, xid := range xids {
		faults = append(faults, map[string]any{"gpu": g, "xid": xid})
	}
	write(t, "xids.json", faults)
}

// write writes a file of the driver that is stood in for.
func write(t testing.TB, name string, content any) {
	t.Helper()
	b, err := json.Marshal(content)
	require.NoError(t, err)
	file := filepath.Join(root(), name)
	require.NoError(t, os.WriteFile(file+".next", b, 0o600))
	require.NoError(t, os.Rename(file+".next", file))
}

// letGo makes the file that a job waits for.
func letGo(t testing.TB, key string) {
	t.Helper()
	a, err := node.Client.Admission(t.Context(), key)
	require.NoError(t, err)
	procs, err := filepath.Glob("/sys/fs/cgroup/*" + a.Cgroup + "/build/cgroup.procs")
	require.NoError(t, err)
	if len(procs) == 0 {
		procs = []string{"/sys/fs/cgroup" + a.Cgroup + "/build/cgroup.procs"} // v2
	}
	pids, err := os.ReadFile(procs[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join("/proc", strings.Fields(string(pids))[0], "root/tmp/go"), nil, 0o600))
}

// hold has a script wait until it is let go.
const hold = "echo holding; while ! [ -e /tmp/go ]; do sleep 0.1; done"

// held is what jobs have: the key of one, by UUID.
func held(t testing.TB) map[string]string {
	t.Helper()
	list, err := node.Client.GPUs(t.Context())
	require.NoError(t, err)
	holders := map[string]string{}
	for _, g := range list.GPUs {
		if g.Holder != nil {
			holders[g.UUID] = g.Holder.Job
		}
	}
	return holders
}

// start starts a job.
func start(t *testing.T, spec gitlab.JobSpec) *gitlab.Job {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	spec.Project, spec.Name = project, t.Name()
	// What is not looked at takes minutes in an emulated machine.
	spec.Variables = append(spec.Variables, variables("GIT_STRATEGY", "none")...)
	if spec.Tags == nil {
		spec.Tags = []string{"default"}
	}
	if spec.Image.Name == "" {
		spec.Image.Name = registry.Image(images.Busybox)
	}
	j, err := server.Enqueue(spec)
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute) // an emulated machine unpacks images for minutes
	defer cancel()
	state, err := j.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, node.AwaitClean(t.Context()))
	return state
}

func variables(pairs ...string) (list []gitlab.Variable) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, gitlab.Variable{Key: pairs[i], Value: pairs[i+1], Public: true})
	}
	return list
}
