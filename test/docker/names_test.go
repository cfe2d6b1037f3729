package docker

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

var (
	yes = true
	not = false
)

// TestNames has an untrusted job take names that others go by.
func TestNames(t *testing.T) {
	attacker := hold(t, "default", gitlab.JobSpec{Protected: &not})
	trusted := hold(t, "default", gitlab.JobSpec{Protected: &yes})
	stranger := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other"), Protected: &yes})
	busybox, git := registry.Image(images.Busybox), registry.Image(images.Git)
	for _, j := range []*job{attacker, trusted, stranger} {
		j.pull(busybox)
	}
	// By commit, tag, import and load, of names that others run and of the helper's.
	attacker.must("run", "--name", "evil", busybox, "sh", "-c", "echo evil >/evil")
	for _, name := range []string{"golang:1.26", "app:latest", busybox, git} {
		attacker.must("commit", "evil", name)
	}
	tar := t.TempDir() + "/evil.tar"
	attacker.must("save", "--output", tar, busybox, "app:latest", "golang:1.26")
	attacker.must("load", "--input", tar)
	attacker.must("tag", "golang:1.26", "docker.io/library/debian:12")
	marked := func(j *job, name string) bool {
		out, err := j.docker("run", "--rm", "--pull", "never", name, "cat", "/evil")
		return err == nil && strings.Contains(out, "evil")
	}
	for _, name := range []string{"golang:1.26", "app:latest", busybox, "debian:12"} {
		require.True(t, marked(attacker, name), name)
		require.False(t, marked(trusted, name), name)
		require.False(t, marked(stranger, name), name)
	}
	// Nor by the stored name, nor by the id of what is the attacker's alone.
	id := attacker.must("image", "inspect", "-f", "{{.Id}}", "golang:1.26")
	stored := names.Domain + "/" + names.Scope{Project: trusted.identity().ProjectKey()}.Tier() + "/docker.io/library/golang:1.26"
	for _, j := range []*job{trusted, stranger} {
		for _, name := range []string{id, strings.TrimPrefix(id, "sha256:")[:12], stored, "golang@" + id} {
			for _, call := range []string{"GET /images/%/json", "GET /images/%/history", "GET /images/%/get", "POST /images/%/tag?repo=mine", "DELETE /images/%", "POST /images/%/push"} {
				method, path, _ := strings.Cut(call, " ")
				status, answer := j.api(method, strings.ReplaceAll(path, "%", name), "")
				if strings.Contains(answer, `{"error":"tag does not exist: `) { // as dockerd says it, within what it streams
					status = http.StatusNotFound
				}
				require.Contains(t, []int{http.StatusNotFound, http.StatusBadRequest}, status, "%s %s: %s", call, name, answer)
			}
		}
		require.NotContains(t, j.must("images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"), "golang")
	}
	// Jobs: image:, services and the helper, of each kind of job.
	for name, c := range map[string]struct {
		spec gitlab.JobSpec
		evil bool
	}{
		"own":      {gitlab.JobSpec{Protected: &not}, true},
		"trusted":  {gitlab.JobSpec{Protected: &yes}, false},
		"stranger": {gitlab.JobSpec{Project: projectOf(t, "other"), Protected: &yes}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.Image = gitlab.Image{Name: busybox, PullPolicies: []string{"if-not-present"}}
			c.spec.Script = []string{"if [ -e /evil ]; then echo this is evil; else echo this is good; fi"}
			j := enqueue(t, "default", c.spec)
			require.Equal(t, gitlab.Success, ended(t, j)) // with the helper's image as it was
			require.Equal(t, c.evil, strings.Contains(j.Log(), "\nthis is evil\n"), j.Log())
		})
	}
	// The untrusted see what the trusted made, and not the other way round.
	trusted.must("run", "--name", "good", busybox, "sh", "-c", "echo good >/good")
	trusted.must("commit", "good", "release:1")
	require.Contains(t, attacker.must("run", "--rm", "release:1", "cat", "/good"), "good")
	out, err := stranger.docker("run", "--rm", "--pull", "never", "release:1", "cat", "/good")
	require.Error(t, err, out)
	attacker.must("rmi", "-f", "release:1")
	out, err = attacker.docker("image", "inspect", "release:1")
	require.Error(t, err, out)
	attacker.must("commit", "evil", "release:1")
	require.NotContains(t, trusted.must("run", "--rm", "release:1", "ls", "/"), "evil")
	_, _ = attacker.docker("system", "prune", "-af")
	require.Contains(t, trusted.must("run", "--rm", "release:1", "cat", "/good"), "good")
}

// TestPrivateImage has a job pull with a login, and others without look for it.
func TestPrivateImage(t *testing.T) {
	owner := hold(t, "default", gitlab.JobSpec{Protected: &yes})
	stranger := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other"), Protected: &yes})
	private := registry.Private(images.Web)
	out, err := stranger.docker("pull", private)
	require.Error(t, err, out)
	owner.must("login", "-u", images.Username, "-p", images.Password, registry.PrivateAddress)
	owner.must("pull", private)
	owner.must("run", "--rm", private, "true")
	owner.must("logout", registry.PrivateAddress)
	out, err = stranger.docker("run", "--rm", "--pull", "never", private, "true")
	require.Error(t, err, out)
	require.Contains(t, out, "No such image")
	out, err = stranger.docker("run", "--rm", private, "true")
	require.Error(t, err, out)
	// A privileged image of the profile's has to come from a registry.
	kind := hold(t, "kind", gitlab.JobSpec{})
	busybox, web := registry.Image(images.Busybox), registry.Image(images.Web)
	kind.pull(busybox)
	kind.must("tag", busybox, web)
	out, err = kind.docker("run", "--rm", "--privileged", web, "true")
	require.Error(t, err, out)
	kind.must("rmi", web)
	kind.pull(web)
	kind.must("run", "--rm", "--privileged", web, "true")
}

// TestStays has a job build an image that the next names.
func TestStays(t *testing.T) {
	maker := hold(t, "default", gitlab.JobSpec{})
	maker.pull(registry.Image(images.Git))
	maker.must("run", "--name", "made", registry.Image(images.Git), "sh", "-c", "echo handed over >/made")
	maker.must("commit", "made", "handed/over:1")
	maker.release()
	j := enqueue(t, "default", gitlab.JobSpec{
		Image: gitlab.Image{Name: "handed/over:1", PullPolicies: []string{"never"}}, Script: []string{"cat /made"},
	})
	require.Equal(t, gitlab.Success, ended(t, j))
	require.Contains(t, j.Log(), "\nhanded over\n")
}
