package docker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

func variables(keysAndValues ...string) (list []gitlab.Variable) {
	for i := 0; i < len(keysAndValues); i += 2 {
		list = append(list, gitlab.Variable{Key: keysAndValues[i], Value: keysAndValues[i+1], Public: true})
	}
	return list
}

// TestDind has jobs as GitLab's documentation writes them, whose service is
// answered by the node.
func TestDind(t *testing.T) {
	dind := []gitlab.Image{{Name: "docker:24.0.5-dind"}}
	busybox := registry.Image(images.Busybox)
	hello := `docker run --rm ` + busybox + ` echo "hello from $(docker info -f '{{.ServerVersion}}')"`
	for name, spec := range map[string]gitlab.JobSpec{
		"TLS": {
			Services: dind, Script: []string{hello},
			Variables: variables("DOCKER_HOST", "tcp://docker:2376", "DOCKER_TLS_CERTDIR", "/certs", "DOCKER_TLS_VERIFY", "1", "DOCKER_CERT_PATH", "$DOCKER_TLS_CERTDIR/client"),
		},
		"no TLS": {
			Services: dind, Script: []string{hello},
			Variables: variables("DOCKER_HOST", "tcp://docker:2375", "DOCKER_TLS_CERTDIR", ""),
		},
		"alias": {
			Services: []gitlab.Image{{Name: "registry.example.com/mirror/docker:27-dind-rootless", Alias: "dockerd", Command: []string{"--tls=false"}}},
			Script:   []string{hello}, Variables: variables("DOCKER_HOST", "tcp://dockerd:2375", "DOCKER_TLS_CERTDIR", ""),
		},
		"defaults": {Services: dind, Script: []string{hello, "ls /certs/client"}},
		"no client certificate": {
			Services: dind, Script: []string{"if docker --tls -H tcp://docker:2376 info 2>&1 | grep 'Server Version'; then exit 1; fi", hello},
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := enqueue(t, "default", spec)
			require.Equal(t, gitlab.Success, ended(t, j))
			require.Contains(t, j.Log(), "\nhello from 29.")
			require.Contains(t, j.Log(), "is the docker of this node")
		})
	}
}

// TestWithout has a profile without docker.
func TestWithout(t *testing.T) {
	j := enqueue(t, "without", gitlab.JobSpec{Script: []string{
		`[ ! -e /var/run/docker.sock ]`, `[ -z "$DOCKER_HOST" ]`, `if (exec 3<>/dev/tcp/build/2375); then exit 1; fi`,
	}})
	require.Equal(t, gitlab.Success, ended(t, j))
}

// withBuildx gives the docker client buildx.
func withBuildx(t *testing.T) {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	const name = "docker-buildx"
	text, err := os.ReadFile(filepath.Join(node.Config.Runtime.Path, name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("buildx is not built")
	}
	require.NoError(t, err)
	// Not a link: jobs have it, too.
	if _, err := os.Stat(filepath.Join(scratch, plugins, name)); err != nil {
		require.NoError(t, os.WriteFile(filepath.Join(scratch, plugins, name), text, 0o755))
	}
}

// TestBuild has jobs build with docker, and the next one run the result.
func TestBuild(t *testing.T) {
	withBuildx(t)
	busybox := registry.Image(images.Busybox)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+busybox+"\nRUN --mount=type=cache,id=c,target=/c echo built >/built && ls /c\n"), 0o644))

	maker := hold(t, "default", gitlab.JobSpec{Protected: &yes})
	maker.pull(busybox)
	out := maker.must("build", "-t", "built/here:1", dir)
	require.Contains(t, maker.must("run", "--rm", "built/here:1", "cat", "/built"), "built", out)
	// Built on, and again under the name.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM built/here:1\nRUN echo twice >>/built\n"), 0o644))
	maker.must("build", "-t", "built/here:1", dir)
	require.Equal(t, "built\ntwice", maker.must("run", "--rm", "built/here:1", "cat", "/built"))
	// Without a name.
	id := maker.must("build", "-q", dir)
	require.Contains(t, maker.must("run", "--rm", id, "cat", "/built"), "twice")
	maker.release()

	j := enqueue(t, "default", gitlab.JobSpec{
		Image:  gitlab.Image{Name: "built/here:1", PullPolicies: []string{"if-not-present"}},
		Script: []string{"cat /built"},
	})
	require.Equal(t, gitlab.Success, ended(t, j))
	require.Contains(t, j.Log(), "\nbuilt\ntwice\n")

	stranger := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other"), Protected: &yes})
	out, err := stranger.docker("run", "--rm", "--pull", "never", "built/here:1", "true")
	require.Error(t, err, out)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM built/here:1\nRUN cat /built\n"), 0o644))
	out, err = stranger.docker("build", dir)
	require.Error(t, err, out)
}
