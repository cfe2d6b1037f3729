package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// TestFullDisk has a node on a small disk, which a job fills.
func TestFullDisk(t *testing.T) {
	needNode(t)
	dir := smallDisk(t)
	n, err := testnode.Start(t.Context(), testnode.Config{Programs: programs, Images: registry, Dir: filepath.Join(dir, "node")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Stop(context.WithoutCancel(t.Context()))) })
	s, err := newServer(n)
	require.NoError(t, err)
	t.Cleanup(s.stop)
	project, err := s.AddProject("group/project", files)
	require.NoError(t, err)

	j := s.enqueue(t, "default", gitlab.JobSpec{Project: project, Script: []string{"dd if=/dev/zero of=big bs=1M"}, AfterScript: []string{"rm big; echo tidy"}})
	require.Equal(t, gitlab.Failed, end(t, j))
	inOrder(t, j.Log(), "No space left on device", "the disk of the runner host is full", "\ntidy\n")

	// One that does not tidy up harms only itself.
	j = s.enqueue(t, "default", gitlab.JobSpec{Project: project, Script: []string{"dd if=/dev/zero of=big bs=1M"}})
	require.Equal(t, gitlab.Failed, end(t, j))
	require.NoError(t, n.AwaitClean(t.Context()))
	j = s.enqueue(t, "default", gitlab.JobSpec{Project: project, Script: []string{"echo room again"}})
	require.Equal(t, gitlab.Success, end(t, j))
}

// TestCachesOnFullDisk goes on without caches where there is no room for them.
func TestCachesOnFullDisk(t *testing.T) {
	needNode(t)
	dir := smallDisk(t)
	n, err := testnode.Start(t.Context(), testnode.Config{Programs: programs, Images: registry, Dir: filepath.Join(dir, "node")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Stop(context.WithoutCancel(t.Context()))) })
	s, err := newServer(n)
	require.NoError(t, err)
	t.Cleanup(s.stop)
	made, err := s.AddProject("group/project", files)
	require.NoError(t, err)
	p := project{T: t, Project: made, s: s, profile: "default"}
	spec := gitlab.JobSpec{
		Image: image(images.Git), Cache: list("deps"), Variables: variables("BERTH_CACHE_1", "id=m,target=/m"),
		Script: []string{"mkdir -p deps; cat deps/f /m/f 2>/dev/null || echo cold; echo warm | tee deps/f /m/f"},
	}
	p.run(spec, "\ncold\n")
	p.run(spec, "\nwarm\nwarm\n")

	// A job fills it, and has it full when its caches are to be saved.
	full := spec
	full.Script = []string{"dd if=/dev/zero of=/m/big bs=1M 2>/dev/null || true", "dd if=/dev/zero of=deps/big bs=1k 2>/dev/null || true"}
	full.AfterScript = []string{"cat README"}
	p.run(full, "\nread me\n", "WARNING: cache deps-protected: not saved: the disk of the runner host is full")
	p.run(spec, "\nwarm\nwarm\n")
	require.NoError(t, n.AwaitClean(t.Context()))
}

// smallDisk mounts a file system of 400 MB.
func smallDisk(t *testing.T) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 400<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", file}, {"mount", "-o", "loop", file, dir}} {
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Skip(err)
		}
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// TestReadOnlyRoot has a root that cannot be written.
func TestReadOnlyRoot(t *testing.T) {
	needNode(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	require.NoError(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := testnode.Start(t.Context(), testnode.Config{Programs: programs, Images: registry, Change: func(c *config.Config) {
		c.Root = filepath.Join(dir, "root")
	}})
	require.ErrorContains(t, err, "it ended: exit status 1")
	require.ErrorContains(t, err, "mkdir "+filepath.Join(dir, "root")+": read-only file system")
}

// TestLeftSocket starts berthd where the socket of a dead one is.
func TestLeftSocket(t *testing.T) {
	needNode(t)
	socket := filepath.Join(t.TempDir(), "berthd.sock")
	leaveSocket(t, socket)
	n, err := testnode.Start(t.Context(), testnode.Config{Programs: programs, Images: registry, Change: func(c *config.Config) { c.Socket = socket }})
	require.NoError(t, err)
	_, err = n.Client.Version(t.Context())
	require.NoError(t, err)
	require.NoError(t, n.Stop(t.Context()))
	require.NoFileExists(t, socket)
}
