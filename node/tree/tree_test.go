package tree

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		println("skipped: needs root")
		return
	}
	os.Exit(m.Run())
}

func write(t *testing.T, size int, name ...string) string {
	t.Helper()
	path := filepath.Join(name...)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, make([]byte, size), 0o644))
	return path
}

// deep makes so many directories in each other, and a file in the last.
func deep(t *testing.T, dir string, levels, size int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	for range levels {
		require.NoError(t, unix.Mkdirat(at, "d", 0o700))
		next, err := unix.Openat(at, "d", unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(at))
		at = next
	}
	fd, err := unix.Openat(at, "file", unix.O_CREAT|unix.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = unix.Write(fd, make([]byte, size))
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	require.NoError(t, unix.Close(at))
}

func size(t *testing.T, dir string) int64 {
	t.Helper()
	n, err := Size(t.Context(), dir)
	require.NoError(t, err)
	return n
}

func TestSize(t *testing.T) {
	outside := t.TempDir()
	write(t, 1<<20, outside, "file")
	for name, c := range map[string]struct {
		make func(dir string)
		want int64 // beside directories
	}{
		"nothing":      {func(string) {}, 0},
		"files":        {func(dir string) { write(t, 64<<10, dir, "a", "1"); write(t, 64<<10, dir, "b", "2") }, 128 << 10},
		"hardlinks":    {func(dir string) { require.NoError(t, os.Link(write(t, 64<<10, dir, "a"), filepath.Join(dir, "b"))) }, 64 << 10},
		"sparse files": {func(dir string) { require.NoError(t, os.Truncate(write(t, 64<<10, dir, "a"), 1<<40)) }, 64 << 10},
		"links": {func(dir string) {
			require.NoError(t, os.Symlink(outside, filepath.Join(dir, "a")))
			require.NoError(t, os.Symlink(filepath.Join(outside, "file"), filepath.Join(dir, "b")))
		}, 0},
		"fifos": {func(dir string) { require.NoError(t, unix.Mkfifo(filepath.Join(dir, "a"), 0o600)) }, 0},
		"mounts": {func(dir string) {
			at := filepath.Join(dir, "a", "b")
			require.NoError(t, os.MkdirAll(at, 0o755))
			require.NoError(t, unix.Mount(outside, at, "", unix.MS_BIND, ""))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(at, unix.MNT_DETACH)) })
		}, 0},
		"closed directories": {func(dir string) { write(t, 64<<10, dir, "a", "1"); require.NoError(t, os.Chmod(dir+"/a", 0)) }, 64 << 10},
	} {
		dir := t.TempDir()
		c.make(dir)
		require.InDelta(t, c.want, size(t, dir), 4*(4<<10), name)
	}
	empty, full := t.TempDir(), t.TempDir()
	deep(t, empty, 3000, 0)
	deep(t, full, 3000, 64<<10)
	require.EqualValues(t, 64<<10, size(t, full)-size(t, empty), "beyond the longest path")
	_, err := Size(t.Context(), filepath.Join(outside, "file"))
	require.ErrorIs(t, err, unix.ENOTDIR)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Size(ctx, outside)
	require.ErrorIs(t, err, context.Canceled)
}

func TestRemove(t *testing.T) {
	outside := t.TempDir()
	precious := write(t, 1, outside, "file")
	top := filepath.Join(t.TempDir(), "top")
	write(t, 1, top, "plain", "file")
	require.NoError(t, os.Symlink(outside, filepath.Join(top, "link")))
	require.NoError(t, os.Symlink(precious, filepath.Join(top, "plain", "link")))
	require.NoError(t, unix.Mkfifo(filepath.Join(top, "fifo"), 0o600))
	require.NoError(t, os.Chmod(filepath.Join(top, "plain"), 0))
	deep(t, top, 3000, 1)
	for n := range 3 * batch {
		write(t, 0, top, "many", strconv.Itoa(n))
	}
	immutable(t, write(t, 1, top, "fixed", "in", "file"), filepath.Join(top, "fixed", "in"), filepath.Join(top, "fixed"), top)
	require.ErrorIs(t, os.Rename(top, top+".moved"), unix.EPERM)
	require.NoError(t, Loosen(top))
	require.NoError(t, os.Rename(top, top+".moved"))
	immutable(t, top+".moved")

	require.NoError(t, Remove(t.Context(), top+".moved"))
	require.NoDirExists(t, top+".moved")
	require.FileExists(t, precious)
	require.NoError(t, Remove(t.Context(), top), "there is none")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(outside, link))
	require.NoError(t, Remove(t.Context(), link))
	require.FileExists(t, precious)
}

func immutable(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		f, err := os.Open(path)
		require.NoError(t, err)
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x10)
		require.NoError(t, f.Close())
		if err != nil {
			t.Skipf("no immutable files in %s: %v", path, err)
		}
	}
}

func TestRemoveSparesMounts(t *testing.T) {
	outside, top := t.TempDir(), t.TempDir()
	precious := write(t, 1, outside, "file")
	for _, name := range []string{"dir", "file"} {
		at := write(t, 1, top, "a", "file")
		source := precious
		if name == "dir" {
			at, source = filepath.Join(top, "b", "dir"), outside
			require.NoError(t, os.MkdirAll(at, 0o755))
		}
		require.NoError(t, unix.Mount(source, at, "", unix.MS_BIND, ""))
		defer func() { require.NoError(t, unix.Unmount(at, unix.MNT_DETACH)) }()
	}
	require.Error(t, Remove(t.Context(), top))
	require.FileExists(t, precious)
}
