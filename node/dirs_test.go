package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDirsThrowAway(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "trash", "j1-0123abcd.x", "builds"), 0o755))
	d, err := openDirs(root)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.empty(ctx, logrus.NewEntry(logrus.New())); close(done) }()
	emptied := func() bool {
		left, err := os.ReadDir(filepath.Join(root, "trash"))
		return err == nil && len(left) == 0
	}
	require.Eventually(t, emptied, 10*time.Second, time.Millisecond, "what an earlier berthd left")

	of := d.of("j2-0123abcd", "p1-0123abcd-protected")
	require.NoError(t, d.create("j2-0123abcd", of))
	require.ErrorIs(t, d.create("j2-0123abcd", of), os.ErrExist)
	require.NoError(t, os.WriteFile(filepath.Join(of.Builds, "file"), nil, 0o400))
	require.NoError(t, os.Chmod(of.Builds, 0o500))
	require.NoError(t, d.remove("j2-0123abcd"))
	require.NoDirExists(t, of.Job)
	require.NoError(t, d.remove("j2-0123abcd"))
	require.Eventually(t, emptied, 10*time.Second, time.Millisecond)
	cancel()
	<-done
}

func TestDirsSpareWhatIsMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	root, precious := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(precious, "file"), nil, 0o600))
	d, err := openDirs(root)
	require.NoError(t, err)
	of := d.of("j1-0123abcd", "p1-0123abcd-protected")
	require.NoError(t, d.create("j1-0123abcd", of))
	require.NoError(t, unix.Mount(precious, of.Builds, "", unix.MS_BIND, ""))
	require.NoError(t, d.remove("j1-0123abcd"))
	require.FileExists(t, filepath.Join(precious, "file"))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	d.empty(ctx, logrus.NewEntry(logrus.New()))
	require.FileExists(t, filepath.Join(precious, "file"))
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a small file system")
	}
	b := newBenchAt(t, smallDisk(t), plain)
	ballast := filepath.Join(b.root, "ballast")
	fill(t, ballast)
	_, err := b.Admit(t.Context(), request(t, 1, self(t)), silent)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, os.Remove(ballast))
	require.NoError(t, b.Sweep(t.Context()))
	b.empty(t)

	r := request(t, 2, self(t))
	_, err = b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	fill(t, ballast)
	_ = b.Release(t.Context(), r.Request.Job.Key()) // as far as it goes
	require.Empty(t, b.left(), "what is not on the disk is gone")
	require.NoError(t, os.Remove(ballast))
	require.NoError(t, b.Sweep(t.Context()))
	b.empty(t)
}

// smallDisk is a file system with room for little.
func smallDisk(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// fill leaves no room on a disk.
func fill(t *testing.T, file string) {
	f, err := os.Create(file)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
}

// A project's /cache is its jobs' from admission to the end of their release, restarts of berthd included.
func TestCacheDirectoryIsHeld(t *testing.T) {
	b := newBench(t, plain)
	r := request(t, 1, self(t))
	a, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	file := filepath.Join(a.Dirs.Cache, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	key := r.Request.Job.CacheKey() + "/directory:/cache"
	refused := func() {
		t.Helper()
		err := b.Dirs.caches.Remove(key)
		require.True(t, errdefs.IsFailedPrecondition(err), err)
		require.ErrorContains(t, err, a.Job)
		require.FileExists(t, file)
	}
	refused()
	b.restart()
	refused()

	// What of a job may live yet has it, though its runner has ended.
	b.fail("remove containers", errors.New("it will not die"))
	require.Error(t, b.Release(t.Context(), a.Job))
	refused()
	b.restart()
	refused()
	b.fail("", nil)
	require.NoError(t, b.Release(t.Context(), a.Job))
	b.empty(t)
	require.NoError(t, b.Dirs.caches.Remove(key))
	require.NoDirExists(t, a.Dirs.Cache)

	r = request(t, 2, self(t))
	a, err = b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	require.NoFileExists(t, file)
	require.DirExists(t, a.Dirs.Cache)
	require.NoError(t, b.Release(t.Context(), a.Job))
}
