package docker

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestPaths binds what the job has, by all kinds of paths, and nothing else.
func TestPaths(t *testing.T) {
	secret := filepath.Join(scratch, "of-the-host")
	require.NoError(t, os.WriteFile(secret, []byte("of the host"), 0o644))
	j := hold(t, "default", gitlab.JobSpec{Script: []string{
		"mkdir -p /elsewhere/deep", "echo mine >/elsewhere/file", "ln -s /elsewhere /builds/link", "ln -s / /builds/root", "ln -s ../../../../../../.. /builds/up",
		"ln -s /proc/1/root /builds/proc", "ln -s " + scratch + " /builds/host", "ln -s loop /builds/loop",
	}})
	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	for _, path := range []string{"/elsewhere", "/builds/link", "/builds/root/elsewhere", "/builds/up/elsewhere", "/builds/../elsewhere", "/elsewhere/deep/.."} {
		require.Equal(t, "mine", j.must("run", "--rm", "-v", path+":/x", busybox, "cat", "/x/file"), path)
	}
	// Written by one, read by the other.
	j.must("run", "--rm", "-v", "/elsewhere:/x", "-v", "/builds/new/dir:/y", busybox, "sh", "-c", "echo theirs >/x/file; echo new >/y/file")
	require.Equal(t, "theirs", j.must("run", "--rm", "--mount", "type=bind,source=/elsewhere/file,target=/f,readonly", busybox, "cat", "/f"))
	text, err := os.ReadFile(filepath.Join(j.admission.Dirs.Builds, "new", "dir", "file"))
	require.NoError(t, err)
	require.Equal(t, "new\n", string(text))
	for _, path := range []string{"/builds/root", "/builds/up", "/builds/host", "/", scratch} {
		out, _ := j.docker("run", "--rm", "-v", path+":/x", busybox, "sh", "-c", "cat /x/of-the-host /x"+secret)
		require.NotContains(t, out, "of the host\n", path)
		require.NotContains(t, out, "of the hostcat", path)
	}
	for _, path := range []string{"/builds/proc", "/builds/loop", "/proc", "/sys", "/dev", "/dev/null", "/builds/root/proc"} {
		out, err := j.docker("run", "--rm", "-v", path+":/x", busybox, "ls", "/x")
		require.Error(t, err, "%s: %s", path, out)
	}
	// What the operator gave to be read is not to be written.
	for _, mount := range []string{"-v=/given:/x:rw", "-v=/given:/x", "--mount=type=bind,source=/given,target=/x"} {
		out, err := j.docker("run", "--rm", mount, busybox, "touch", "/x/evil")
		require.Error(t, err, out)
		require.Contains(t, out, "Read-only")
	}
	out, _ := j.docker("run", "--rm", "-v", "/:/x", busybox, "touch", "/x/given/evil")
	require.NoFileExists(t, filepath.Join(scratch, "given", "evil"), out)
	// The socket of the job is the job's docker.
	j.must("run", "--rm", "-v", "/var/run/docker.sock:/var/run/docker.sock", busybox, "test", "-S", "/var/run/docker.sock")
	// dockerd tells of an automatic removal after the client.
	require.Eventually(t, func() bool {
		mounts, err := filepath.Glob(filepath.Join(node.Config.State, "docker", "binds", j.admission.Job, "*"))
		require.NoError(t, err)
		return len(mounts) == 0
	}, 10*time.Second, 10*time.Millisecond, "binds outlive their containers")
}
