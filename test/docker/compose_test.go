package docker

import (
	_ "embed"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/clients"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

//go:embed testdata/shop/compose.script
var composeScript string

var composeOnce sync.Once

// needCompose gives the docker client compose, and buildx, which it builds by.
func needCompose(t *testing.T) {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	withBuildx(t)
	composeOnce.Do(func() { require.NoError(t, clients.Compose(t.Context(), filepath.Join(scratch, plugins))) })
}

// shop copies the project that is brought up to where jobs have it, too.
func shop(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(scratch, work, "shop")
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata/shop")))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// TestCompose brings a project up, uses it in all ways and takes it down, with
// the job's docker and with the bare daemon.
func TestCompose(t *testing.T) {
	needCompose(t)
	j := hold(t, "default", gitlab.JobSpec{})
	dir := shop(t)
	for _, host := range []string{"unix://" + j.socket(), "unix://" + bare()} {
		_, err := client(t, host, "", "pull", registry.Image(images.Busybox))
		require.NoError(t, err)
	}
	script{
		lines: composeScript, dir: dir, before: []string{"compose"},
		env: []string{
			"IMAGE=" + registry.Image(images.Busybox), "REGISTRY=" + registry.Address, "TOKEN=of-the-client",
			"COMPOSE_PROGRESS=plain", "COMPOSE_ANSI=never",
		},
		unlike: []difference{
			{regexp.MustCompile(`(?s)#\d+ .*\n`), ""},                            // what builds say
			{regexp.MustCompile(`(?m)^(\S+ +\d+ +root) .* (\S+ \d+)$`), "$1 $2"}, // process ids
			{regexp.MustCompile(`0\.0\.0\.0:\d{5}-(>|\\u003e)9000`), "0.0.0.0:<any>->9000"},
			{regexp.MustCompile(`"PublishedPort":\d{5}`), `"PublishedPort":"any"`},
			// Without an order, or of the time.
			{regexp.MustCompile(`"(Labels|Mounts|Networks|CreatedAt|RunningFor|Status)":"[^"]*"`), `"$1"`},
			{regexp.MustCompile(`(?m)^.*"action":"(exec_|health_status).*\n`), ""}, // of health checks
			{regexp.MustCompile(`"(timeNano|time|execDuration)":"?[^",}]*"?`), `"$1"`},
		},
	}.compare(t, j)
	forgetBuilds(t)
}

// forgetBuilds removes what the bare daemon's own BuildKit has made, which no
// job has to do with, and volumes that compose leaves.
func forgetBuilds(t *testing.T) {
	t.Helper()
	out, err := client(t, "unix://"+bare(), "", "builder", "prune", "-af")
	require.NoError(t, err, out)
	out, err = client(t, "unix://"+bare(), "", "volume", "prune", "-f")
	require.NoError(t, err, out)
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(root + node.Config.Limits.Cgroup + "/buildkit")
		require.NoError(t, err)
		for _, dir := range dirs {
			require.NoError(t, os.Remove(dir))
		}
	}
}
