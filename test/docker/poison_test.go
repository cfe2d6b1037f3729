package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestPoisonedService has an untrusted job give its image the name of one that
// others have as a service.
func TestPoisonedService(t *testing.T) {
	attacker := hold(t, "default", gitlab.JobSpec{Protected: &not})
	web := registry.Image(images.Web)
	attacker.pull(web)
	attacker.must("create", "--name", "evil", web)
	attacker.must("commit", "--change", "ENV GREETING=evil", "evil", web)
	for name, c := range map[string]struct {
		spec gitlab.JobSpec
		evil bool
	}{
		"own":      {gitlab.JobSpec{Protected: &not}, true},
		"trusted":  {gitlab.JobSpec{Protected: &yes}, false},
		"stranger": {gitlab.JobSpec{Project: projectOf(t, "other"), Protected: &not}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.Services = []gitlab.Image{{Name: web, Alias: "web", PullPolicies: []string{"if-not-present"}}}
			c.spec.Script = []string{`exec 3<>/dev/tcp/web/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; echo "it says: $(tail -1 <&3)"`}
			j := enqueue(t, "default", c.spec)
			require.Equal(t, gitlab.Success, ended(t, j))
			require.Equal(t, c.evil, strings.Contains(j.Log(), "\nit says: evil\n"), j.Log())
		})
	}
}

// TestPoisonedBase has one give it the name that builds of others begin with.
func TestPoisonedBase(t *testing.T) {
	attacker := hold(t, "default", gitlab.JobSpec{Protected: &not})
	withBuildx(t)
	busybox := registry.Image(images.Busybox)
	attacker.pull(busybox)
	attacker.must("run", "--name", "evil", busybox, "sh", "-c", "echo evil >/evil")
	attacker.must("commit", "evil", busybox)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+busybox+"\nRUN if [ -e /evil ]; then echo evil; else echo good; fi >/which\n"), 0o644))
	attacker.must("build", "-t", "made:1", dir)
	require.Equal(t, "evil", attacker.must("run", "--rm", "made:1", "cat", "/which"))
	for _, spec := range []gitlab.JobSpec{{Protected: &yes}, {Project: projectOf(t, "other"), Protected: &not}} {
		j := hold(t, "default", spec)
		j.must("build", "-t", "made:2", dir)
		require.Equal(t, "good", j.must("run", "--rm", "made:2", "cat", "/which"))
		// Nor by the cache of what was built upon it.
		j.must("build", "-t", "made:2", "--cache-from", "made:1", dir)
		require.Equal(t, "good", j.must("run", "--rm", "made:2", "cat", "/which"))
	}
}

// TestChangingPaths has a job change what a path leads to while it is bound,
// and copied from.
func TestChangingPaths(t *testing.T) {
	secret := filepath.Join(scratch, "changing")
	require.NoError(t, os.WriteFile(secret, []byte("of the host"), 0o644))
	j := hold(t, "default", gitlab.JobSpec{Script: []string{
		"mkdir -p /builds/race/good; (while [ ! -e /builds/go ]; do ln -sfn good /builds/race/path; ln -sfn / /builds/race/path; ln -sfn /proc/1/root /builds/race/path; done) &",
	}})
	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	for range 10 {
		out, _ := j.docker("run", "--rm", "-v", "/builds/race/path:/x", busybox, "sh", "-c", "cat /x"+secret+" /x/../"+secret)
		require.NotContains(t, out, "of the host\n")
		require.NotContains(t, out, "of the hostcat")
	}
	// By links in the container.
	j.must("run", "-d", "--name", "links", busybox, "sh", "-c", "ln -s / /root-link; ln -s ../../../../../../../.. /up; ln -s /proc/1/root /proc-link; exec sleep 1000")
	for _, path := range []string{"/root-link", "/up", "/proc-link", "/proc/1/root", "/../../../.."} {
		out, _ := j.docker("cp", "links:"+path+secret, "-")
		require.NotContains(t, out, "of the host")
		file := filepath.Join(t.TempDir(), filepath.Base(secret))
		require.NoError(t, os.WriteFile(file, []byte("of the job"), 0o644))
		_, _ = j.docker("cp", file, "links:"+path+filepath.Dir(secret)+"/")
		text, err := os.ReadFile(secret)
		require.NoError(t, err)
		require.Equal(t, "of the host", string(text), path)
	}
}
