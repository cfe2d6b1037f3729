package node

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func socketDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "berth") //nolint:usetesting // sockets need a short path
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: gives the socket to a group")
	}
	dir := socketDir(t)
	path := filepath.Join(dir, "run", "berthd.sock")
	l, err := listen(path, 4711)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	require.Equal(t, uint32(4711), info.Sys().(*syscall.Stat_t).Gid)
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1)

	_, err = listen(path, 0)
	require.True(t, errdefs.IsAlreadyExists(err), "a live socket is let be: %v", err)

	require.NoError(t, l.Close()) // as after kill -9, the file stays
	require.FileExists(t, path)
	fresh, err := listen(path, 0)
	require.NoError(t, err, "a stale socket is replaced")
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, closeSocket(fresh, path))
	require.NoFileExists(t, path)
}

func TestListenRefusesFiles(t *testing.T) {
	path := filepath.Join(socketDir(t), "notes")
	require.NoError(t, os.WriteFile(path, []byte("keep"), 0o600))
	_, err := listen(path, os.Getgid())
	require.ErrorContains(t, err, "no socket")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "keep", string(b))
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	unlock, err := lock(dir)
	require.NoError(t, err)
	_, err = lock(dir)
	require.True(t, errdefs.IsAlreadyExists(err), err)
	require.NoError(t, unlock())
	unlock, err = lock(dir)
	require.NoError(t, err)
	require.NoError(t, unlock())
}
