package docker

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// inside is a client of the node's containerd.
func inside(t *testing.T) *containerd.Client {
	t.Helper()
	c, err := containerd.New(filepath.Join(node.Config.State, "containerd", "containerd.sock"), containerd.WithDefaultNamespace(node.Config.Runtime.Namespace))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// age makes images seem to be unused for longer than the node keeps them.
func age(t *testing.T, c *containerd.Client, stored ...string) {
	t.Helper()
	for _, name := range stored {
		i, err := c.ImageService().Get(t.Context(), name)
		require.NoError(t, err)
		i.Labels = lastuse.Put(nil, name, time.Now().Add(-15*24*time.Hour))
		_, err = c.ImageService().Update(t.Context(), i, "labels."+lastuse.Label)
		require.NoError(t, err)
	}
}

// stored is a full name in containerd, made by the job.
func (j *job) stored(name string) string {
	id := j.identity()
	return names.Domain + "/" + names.Scope{Project: id.ProjectKey(), Protected: id.Protected}.Tier() + "/" + name
}

// TestCollected has berthd remove an image that a job has made and nobody used
// since, and none that is in use, by whatever.
func TestCollected(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	busybox := registry.Image(images.Busybox)
	maker := hold(t, "default", gitlab.JobSpec{})
	maker.pull(busybox)
	stored := func(name string) string { return maker.stored("docker.io/gc/" + name) }
	all := map[string]string{} // by the jobs' names
	for _, name := range []string{"old:1", "running:1", "stopped:1", "job:1"} {
		maker.must("run", "--name", name[:3], busybox, "sh", "-c", "echo "+name+" >/made")
		maker.must("commit", name[:3], "gc/"+name)
		maker.must("rm", name[:3])
		all[name] = stored(name)
	}
	listed := func(j *job) string {
		return j.must("images", "--filter", "reference=gc/*", "--format", "{{.Repository}}:{{.Tag}}")
	}
	require.Contains(t, listed(maker), "gc/old:1")
	maker.release()

	user := hold(t, "default", gitlab.JobSpec{Image: gitlab.Image{Name: "gc/job:1", PullPolicies: []string{"never"}}})
	user.must("run", "-d", "--name", "running", "gc/running:1", "sleep", "1000")
	user.must("create", "--name", "stopped", "gc/stopped:1", "cat", "/made")
	// None is to be seen as used by anything but what is there.
	client := inside(t)
	for _, name := range all {
		age(t, client, name)
	}
	before, err := client.ImageService().Get(t.Context(), all["old:1"])
	require.NoError(t, err)
	// berthd looks when it starts, and knows nothing then of what the job did before.
	require.NoError(t, node.KillDaemon())
	require.NoError(t, node.StartDaemon(t.Context()))
	require.Eventually(t, func() bool {
		_, err := client.ImageService().Get(t.Context(), all["old:1"])
		return errdefs.IsNotFound(err)
	}, time.Minute, 50*time.Millisecond)
	require.Eventually(t, func() bool { return strings.Contains(node.Log(), "removed an image") }, time.Minute, 50*time.Millisecond)
	_, err = client.ContentStore().Info(t.Context(), before.Target.Digest)
	require.True(t, errdefs.IsNotFound(err), err)
	require.Eventually(t, func() bool { _, err := user.docker("version"); return err == nil }, 30*time.Second, 100*time.Millisecond)
	require.ElementsMatch(t, []string{"gc/running:1", "gc/stopped:1", "gc/job:1"}, strings.Fields(listed(user)))

	list, err := node.Client.Images(t.Context())
	require.NoError(t, err)
	users := map[string][]string{}
	for _, i := range list {
		if i.Project == user.identity().Project {
			users[i.Image] = i.Users
			require.NotZero(t, i.Size, i.Image)
		}
	}
	require.Len(t, users["gc/running:1"], 1)
	require.Contains(t, users["gc/running:1"][0], "container ")
	require.Len(t, users["gc/stopped:1"], 1)
	require.Contains(t, users["gc/stopped:1"][0], "container ")
	require.Equal(t, []string{user.admission.Job}, users["gc/job:1"])
	err = node.Client.RemoveImage(t.Context(), all["stopped:1"])
	require.True(t, errdefs.IsFailedPrecondition(err), err)

	// All is as it was for who has it, by name too.
	require.Equal(t, "stopped:1", user.must("start", "-a", "stopped"))
	require.Equal(t, "running:1", user.must("exec", "running", "cat", "/made"))
	require.Equal(t, "running:1", user.must("run", "--rm", "--pull", "never", "gc/running:1", "cat", "/made"))
	user.release()

	// And then nothing has them any more.
	age(t, client, all["stopped:1"], all["job:1"])
	var removed []api.Image
	require.Eventually(t, func() bool {
		went, err := node.Client.PruneImages(t.Context(), api.ImagePrune{Room: api.Room{MaxAge: 14 * 24 * time.Hour}})
		require.NoError(t, err)
		removed = append(removed, went...)
		return len(removed) >= 2
	}, time.Minute, 100*time.Millisecond)
	next := hold(t, "default", gitlab.JobSpec{})
	require.Equal(t, "gc/running:1", listed(next), "was used a moment ago")
}

// TestBuiltStays has images go while a job is there that has built with one of
// them, and made another.
func TestBuiltStays(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	j := hold(t, "default", gitlab.JobSpec{})
	j.pull(registry.Image(images.Busybox))
	j.must("tag", registry.Image(images.Busybox), "from:1")
	from, result := j.stored("docker.io/library/from:1"), j.stored("docker.io/library/result:1")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM from:1\nRUN echo built >/built\n"), 0o644))
	j.must("build", "-q", "-t", "result:1", dir)
	client := inside(t)
	age(t, client, from, result)
	removed, err := node.Client.PruneImages(t.Context(), api.ImagePrune{Room: api.Room{MaxAge: 14 * 24 * time.Hour}})
	require.NoError(t, err)
	for _, i := range removed {
		require.NotContains(t, []string{from, result}, i.Name, "the job that made it goes on")
	}
	require.Contains(t, j.must("run", "--rm", "result:1", "cat", "/built"), "built")
	j.must("rmi", "from:1", "result:1")
}

// TestImageCommands looks after images as an operator does.
func TestImageCommands(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	git := registry.Image(images.Git)
	berth := func(args ...string) (string, error) {
		out, err := exec.Command(programs.Berth, append([]string{"--socket", node.Config.Socket, "images"}, args...)...).CombinedOutput()
		return string(out), err
	}
	out, err := berth("ls", "--json")
	require.NoError(t, err, out)
	found := api.Image{}
	for line := range strings.Lines(out) {
		var i api.Image
		require.NoError(t, json.Unmarshal([]byte(line), &i))
		if i.Name == git {
			found = i
		}
	}
	require.Contains(t, found.Users, j.admission.Job)
	require.NotZero(t, found.Size)
	require.LessOrEqual(t, found.Unique, found.Size)
	require.Less(t, time.Since(found.Used), 2*lastuse.Interval)
	out, err = berth("ls")
	require.NoError(t, err, out)
	require.Contains(t, out, "IN USE BY")
	require.Contains(t, out, git)
	out, err = berth("rm", git)
	require.Error(t, err)
	require.Contains(t, out, "is in use by "+j.admission.Job)
	out, err = berth("rm", "none/such:1")
	require.Error(t, err)
	require.Contains(t, out, "berth images ls lists them")
	out, err = berth("prune")
	require.Error(t, err)
	require.Contains(t, out, "say what to remove")

	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	j.must("tag", busybox, "operated:1")
	out, err = berth("prune", "--all", "--dry-run")
	require.NoError(t, err, out)
	require.Contains(t, out, "would remove ")
	require.NotContains(t, out, git)
	require.NotContains(t, out, "operated:1")
	project := j.identity().Project
	j.release()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		out, err := berth("rm", "operated:1", "--project", project)
		require.NoError(c, err, out)
	}, time.Minute, 100*time.Millisecond)
	out, err = berth("ls", "--project", project)
	require.NoError(t, err, out)
	require.NotContains(t, out, "operated:1")
}
