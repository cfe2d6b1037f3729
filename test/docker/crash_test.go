package docker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// makes everything that there is to be left.
func (j *job) litter() {
	j.t.Helper()
	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	j.must("network", "create", "mine")
	j.must("run", "-d", "--name", "one", "--network", "mine", "--restart", "always", "-v", "named:/a", "-v", "/anonymous", "-v", "/builds:/b", "-p", "7000:7000", busybox, "sleep", "1000")
	j.must("run", "-d", "--name", "two", busybox, "sleep", "1000")
	j.must("commit", "one")
	j.must("create", "--name", "three", busybox)
}

// left lists what there is of a job.
func left(t *testing.T, key string) []string {
	t.Helper()
	binds, err := filepath.Glob(filepath.Join(node.Config.State, "docker", "binds", key+"*"))
	require.NoError(t, err)
	return append(leftOn(t, bare()), binds...)
}

// leftOn lists what a daemon has.
func leftOn(t *testing.T, socket string) (all []string) {
	t.Helper()
	for _, path := range []string{"/containers/json?all=1", "/networks", "/volumes"} {
		_, text := request(t, socket, "GET", path, "")
		var v any
		require.NoError(t, json.Unmarshal([]byte(text), &v))
		if m, ok := v.(map[string]any); ok {
			v = m["Volumes"]
		}
		list, _ := v.([]any)
		for _, one := range list {
			line, err := json.Marshal(one)
			require.NoError(t, err)
			if name, _ := one.(map[string]any)["Name"].(string); name == "none" || name == "host" {
				continue
			}
			all = append(all, string(line))
		}
	}
	return all
}

func dockerdPID(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(node.Config.State, "docker", "daemon", "dockerd.pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(text))
	require.NoError(t, err)
	return pid
}

func awaitLeft(t *testing.T, key string) {
	t.Helper()
	var last []string
	require.Eventually(t, func() bool { last = left(t, key); return len(last) == 0 }, 90*time.Second, 200*time.Millisecond, "%v", last)
}

// TestNothingIsLeft looks after the end of a job.
func TestNothingIsLeft(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	j.litter()
	require.NotEmpty(t, left(t, j.admission.Job))
	j.release()
	awaitLeft(t, j.admission.Job)
}

// TestKilled kills berthd and dockerd while a job has containers.
func TestKilled(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	j.litter()
	pid := j.must("inspect", "-f", "{{.State.Pid}}", "one")
	require.NoError(t, unix.Kill(dockerdPID(t), unix.SIGKILL))
	require.NoError(t, node.KillDaemon())
	require.NoError(t, node.StartDaemon(t.Context()))
	// The job goes on, with all that it had.
	require.Eventually(t, func() bool { _, err := j.docker("version"); return err == nil }, 30*time.Second, 100*time.Millisecond)
	require.Equal(t, pid, j.must("inspect", "-f", "{{.State.Pid}}", "one"))
	require.Contains(t, j.must("ps", "--filter", "name=one"), "0.0.0.0:7000->7000/tcp")
	j.must("exec", "one", "true")
	j.must("network", "create", "later")
	j.must("run", "--rm", "--network", "mine", registry.Image(images.Busybox), "true")
	require.NoError(t, unix.Kill(dockerdPID(t), unix.SIGKILL))
	j.release()
	awaitLeft(t, j.admission.Job)
}

// TestEndedMeanwhile ends a job while berthd does not run.
func TestEndedMeanwhile(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	j.litter()
	require.NoError(t, node.KillDaemon())
	j.release()
	require.NoError(t, node.StartDaemon(t.Context()))
	awaitLeft(t, j.admission.Job)
}
