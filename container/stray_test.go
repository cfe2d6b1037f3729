package container_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"

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

// TestRemoveShims has containerd forget containers while their tasks run.
func TestRemoveShims(t *testing.T) {
	if missing := containerdtest.Missing(); missing != "" {
		t.Skip(missing)
	}
	dir, err := os.MkdirTemp("", "stray") //nolint:usetesting // short, as sockets need it
	require.NoError(t, err)
	address, stop, err := containerdtest.Start(dir)
	require.NoError(t, err)
	t.Cleanup(stop)
	client, err := containerd.New(address, containerd.WithDefaultNamespace("stray"))
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	registry, err := images.Serve(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, registry.Close()) })
	image, err := client.Pull(t.Context(), registry.Image(images.Busybox), containerd.WithPullUnpack)
	require.NoError(t, err)

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
	for _, pattern := range []string{
		"/run/containerd/runc/stray/" + job + "-*",
		filepath.Join(dir, "*/io.containerd.runtime.v2.task/stray", job+"-*"),
	} {
		left, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.Empty(t, left)
	}
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
