//go:build cgo

package gpu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// TestRealGPU runs a job that computes on a real GPU, on a node of its own. It
// changes no setting of the GPU.
func TestRealGPU(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		t.Skip("this machine has no GPU: there is no /dev/nvidiactl")
	}
	real, err := testnode.Start(t.Context(), testnode.Config{Programs: programs, Images: registry, Change: func(c *config.Config) {
		c.GPU = config.GPU{Program: filepath.Join(dir, "berth-gpu"), DriverRoot: "/"}
		c.Profiles = map[string]executor.Profile{"default": testnode.Profile(registry)}
	}})
	require.NoError(t, err)
	defer func() { require.NoError(t, real.Stop(t.Context())) }()
	var list *api.GPUList
	require.Eventually(t, func() bool {
		list, err = real.Client.GPUs(t.Context())
		return err == nil && (list.Reason == "" || !strings.Contains(list.Reason, "not been looked at"))
	}, time.Minute, 100*time.Millisecond)
	require.Empty(t, list.Reason)
	wish := variables("BERTH_GPU_COUNT", "1")
	if list.GPUs[0].MIG != "" {
		wish = variables("BERTH_GPU_MIG_PROFILE", list.GPUs[0].MIG)
	}

	program := filepath.Join(t.TempDir(), "double")
	out, err := exec.Command("gcc", "-O2", "-o", program, "testdata/double.c", "-ldl").CombinedOutput()
	require.NoError(t, err, string(out))
	binary, err := os.ReadFile(program)
	require.NoError(t, err)
	own, err := real.GitLab()
	require.NoError(t, err)
	defer own.Close()
	p, err := own.AddProject("group/cuda", fstest.MapFS{"double": {Data: binary, Mode: 0o755}})
	require.NoError(t, err)
	r, err := runner.Start(programs.Runner, t.TempDir(), runner.Config{
		Concurrent: 1, CheckInterval: 1,
		Runners: []runner.Runner{real.Runner("default", own.URL(), own.AddRunner("default"))},
	}, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Stop(t.Context())) }()
	j, err := own.Enqueue(gitlab.JobSpec{
		Project: p, Name: "cuda", Tags: []string{"default"}, Image: gitlab.Image{Name: registry.Image(images.Git)},
		Variables: wish,
		Script: []string{
			"nvidia-smi -L", "chmod +x double", "./double", mknod,
			"ls -l /dev/nvidia[0-9]* | wc -l | sed 's/^/nodes: /'",
		},
	})
	require.NoError(t, err)
	state, err := j.Wait(t.Context())
	require.NoError(t, err)
	t.Log(j.Log())
	require.Equal(t, gitlab.Success, state)
	require.Contains(t, j.Log(), "\ndevices: 1\n")
	require.Contains(t, j.Log(), "\nnodes: 1\n")
	require.Contains(t, j.Log(), ": right, at ")
	require.NotContains(t, j.Log(), "HINT")
	require.NoError(t, real.AwaitClean(t.Context()))
}
