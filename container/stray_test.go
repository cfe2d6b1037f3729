package container_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/test/containerdtest"
	"gitlab.com/berth-ci/berth/test/images"
)

// runTask runs a container that only sleeps.
func runTask(t *testing.T, client *containerd.Client, image containerd.Image, id, job string) api.Process {
	t.Helper()
	c, err := client.NewContainer(t.Context(), id, containerd.WithImage(image), containerd.WithNewSnapshot(id, image),
		containerd.WithContainerLabels(map[string]string{container.JobLabel: job}),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "1000")))
	require.NoError(t, err)
	task, err := c.NewTask(t.Context(), cio.NullIO)
	require.NoError(t, err)
	require.NoError(t, task.Start(t.Context()))
	p, err := api.FindProcess(int(task.Pid()))
	require.NoError(t, err)
	return p
}

// start runs a containerd with an image in it.
func start(t *testing.T, namespace string, more ...string) (dir string, client *containerd.Client, image containerd.Image) {
	t.Helper()
	if missing := containerdtest.Missing(); missing != "" {
		t.Skip(missing)
	}
	dir, err := os.MkdirTemp("", namespace) //nolint:usetesting // short, as sockets need it
	require.NoError(t, err)
	address, stop, err := containerdtest.Start(dir, more...)
	require.NoError(t, err)
	t.Cleanup(stop)
	client, err = containerd.New(address, containerd.WithDefaultNamespace(namespace))
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	registry, err := images.Serve(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, registry.Close()) })
	image, err = client.Pull(t.Context(), registry.Image(images.Busybox), containerd.WithPullUnpack)
	require.NoError(t, err)
	return dir, client, image
}

// left lists what there is of a job's containers on disk.
func left(t *testing.T, dir, namespace, job string) (paths []string) {
	t.Helper()
	for _, pattern := range []string{
		filepath.Join("/run/containerd/runc", namespace, job+"-*"),
		filepath.Join(dir, "*/io.containerd.runtime.v2.task", namespace, job+"-*"),
	} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		paths = append(paths, found...)
	}
	return paths
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	var state string
	var ppid int
	_, err = fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &ppid)
	require.NoError(t, err)
	return ppid
}

// TestRemoveBundles has shims die, and containerd's clean-up after them cut off.
func TestRemoveBundles(t *testing.T) {
	dir, client, image := start(t, "bundle", "[timeouts]", `"io.containerd.timeout.shim.cleanup" = "1ms"`)
	const job, other = "j1-0123abcd", "j11-0123abcd"
	p := runTask(t, client, image, container.ID(job, container.RoleBuild), job)
	theOther := runTask(t, client, image, container.ID(other, container.RoleBuild), other)
	require.NoError(t, unix.Kill(parent(t, p.PID), unix.SIGKILL)) // its shim
	// Until containerd has given up.
	c, err := client.LoadContainer(t.Context(), container.ID(job, container.RoleBuild))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := c.Task(t.Context(), nil)
		return errdefs.IsNotFound(err)
	}, 30*time.Second, 10*time.Millisecond)
	require.NotEmpty(t, left(t, dir, "bundle", job), "this containerd cleans up in a millisecond")

	require.NoError(t, container.Remove(t.Context(), client, job))
	require.Empty(t, left(t, dir, "bundle", job))
	require.False(t, p.Alive())
	require.NotEmpty(t, left(t, dir, "bundle", other))
	require.True(t, theOther.Alive())
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(dir, "state")))
	require.NoError(t, err)
	require.Len(t, mounts, 1, "the other's root")
	require.NoError(t, container.Remove(t.Context(), client, other))
}

// TestRemoveShims has containerd forget containers while their tasks run.
func TestRemoveShims(t *testing.T) {
	dir, client, image := start(t, "stray")
	const job, other = "j1-0123abcd", "j11-0123abcd"
	var processes []api.Process
	for _, role := range []string{"build", "helper", "service-0"} {
		processes = append(processes, runTask(t, client, image, job+"-"+role, job))
	}
	theOther := runTask(t, client, image, container.ID(other, container.RoleBuild), other)
	for _, role := range []string{"build", "service-0"} {
		require.NoError(t, client.ContainerService().Delete(t.Context(), job+"-"+role))
	}
	jobs, err := container.Jobs(t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, []string{job, other}, jobs)

	require.NoError(t, container.Remove(t.Context(), client, job))
	for _, p := range processes {
		require.False(t, p.Alive())
	}
	require.True(t, theOther.Alive())
	require.Empty(t, left(t, dir, "stray", job))
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(dir, "state")))
	require.NoError(t, err)
	require.Len(t, mounts, 1, "the other's root")
	jobs, err = container.Jobs(t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, []string{other}, jobs)

	require.NoError(t, container.Remove(t.Context(), client, job), "again")
	require.NoError(t, container.Remove(t.Context(), client, other))
	require.False(t, theOther.Alive())
	snapshotter := client.SnapshotService("")
	for _, role := range []string{"build", "service-0"} {
		err := snapshotter.Remove(t.Context(), job+"-"+role) // containerd's collector would
		require.True(t, err == nil || errdefs.IsNotFound(err), err)
	}
	require.NoError(t, snapshotter.Walk(t.Context(), func(_ context.Context, s snapshots.Info) error {
		if s.Kind == snapshots.KindActive {
			return fmt.Errorf("snapshot %s is left", s.Name)
		}
		return nil
	}))
}
