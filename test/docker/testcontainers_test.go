package docker

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/clients"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// ryuk is the image that Testcontainers for Go asks for.
const ryuk = "testcontainers/ryuk:0.14.0"

var testcontainersOnce sync.Once

// needTestcontainers builds the suite and the image that it reaps with.
func needTestcontainers(t *testing.T) {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	testcontainersOnce.Do(func() {
		require.NoError(t, clients.Testcontainers(t.Context(), filepath.Join(scratch, work)))
		program, err := clients.Reaper(t.Context(), t.TempDir())
		require.NoError(t, err)
		require.NoError(t, registry.Add(t.Context(), "test/"+ryuk, "/bin/ryuk", program))
	})
}

// TestTestcontainers runs a suite of Testcontainers in jobs, behind a mirror,
// and has what one leaves that dies reaped: by Ryuk, or what stands in for it.
func TestTestcontainers(t *testing.T) {
	needTestcontainers(t)
	suite := filepath.Join(scratch, work, "testcontainers")
	mirror := []string{"TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX", registry.Address + "/test"}
	for name, c := range map[string]struct {
		variables []string
		services  []gitlab.Image
		at        string
	}{
		"socket":   {at: "http://localhost"},
		"override": {variables: []string{"DOCKER_HOST", "unix:///var/run/docker.sock", "TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE", "/run/berth/docker.sock"}, at: "http://localhost"},
		"dind": {
			variables: []string{"DOCKER_HOST", "tcp://docker:2375", "DOCKER_TLS_CERTDIR", ""},
			services:  []gitlab.Image{{Name: "docker:28-dind"}}, at: "http://docker",
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := enqueue(t, "default", gitlab.JobSpec{
				Services:  c.services,
				Variables: variables(append(c.variables, mirror...)...),
				Script:    []string{suite, "docker ps -a --format '{{.Image}} {{.Names}}'"},
			})
			require.Equal(t, gitlab.Success, ended(t, j))
			require.Contains(t, j.Log(), "\nthe suite has passed\n")
			require.Contains(t, j.Log(), "\nvisited "+c.at+"\n")
			require.Contains(t, j.Log(), "\n"+registry.Address+"/test/"+ryuk+" reaper_", "nothing would be reaped")
		})
	}
	t.Run("reaped", func(t *testing.T) {
		j := enqueue(t, "default", gitlab.JobSpec{
			Variables: variables(append(mirror, "RYUK_RECONNECTION_TIMEOUT", "1s", "RYUK_CONNECTION_TIMEOUT", "1m")...),
			Script: []string{
				"docker volume create mine",
				"docker run -d --name mine -v mine:/data " + registry.Image(images.Busybox) + " sleep 1000",
				suite + " die || [ $? -eq 3 ]",
				"left() { docker ps -aq --filter label=org.testcontainers; docker network ls -q --filter label=org.testcontainers; docker volume ls -q --filter label=org.testcontainers; }",
				"docker volume ls",
				"echo before $(left | wc -l)",
				"while [ -n \"$(left)\" ]; do sleep 0.1; done",
				"echo after $(docker ps -a --format '{{.Names}}') $(docker volume ls -q)",
			},
		})
		require.Equal(t, gitlab.Success, ended(t, j))
		require.Contains(t, j.Log(), "\nleft container ")
		require.Regexp(t, "\nbefore [4-9]\n", j.Log())
		require.Contains(t, j.Log(), "\nafter mine mine\n")
	})
	require.NoError(t, os.RemoveAll(suite))
}
