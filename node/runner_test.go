package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
)

// TestTempDirInAContainer: a runner's directory is looked for with its eyes,
// symbolic links and all.
func TestTempDirInAContainer(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and busybox: changes the root of a process")
	}
	root := t.TempDir()
	program, err := os.ReadFile(busybox)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "busybox"), program, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "var/tmp/job"), 0o755))
	require.NoError(t, os.Symlink("/var/tmp", filepath.Join(root, "tmp")))

	cmd := exec.Command("/busybox", "sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := api.FindProcess(cmd.Process.Pid)
	require.NoError(t, err)

	r := runner{p, "/tmp/job"}
	require.NoDirExists(t, r.tempDir)
	require.NoError(t, r.check())
	require.NoError(t, os.Remove(filepath.Join(root, "var/tmp/job")))
	require.Contains(t, r.ended(), "through with it")
}
