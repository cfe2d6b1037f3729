package docker

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// nested starts a containerd in a privileged container, as a node of kind has
// one, and a container in that, whose port the job gets. It says so when it is
// up, having made what else a node may have: mounts, a network namespace,
// links, a cgroup.
func nested() []string {
	web := registry.Image(images.Web)
	return []string{
		"docker pull -q " + web,
		"docker save -o web.tar " + web,
		"docker run -d --name node --hostname node --privileged --tmpfs /run --tmpfs /tmp -v /var/lib/containerd -v /runtime:/runtime:ro" +
			" -v \"$CI_PROJECT_DIR:/src\" -p 8080:8080 -e PATH=/runtime:/bin:/usr/bin " + web + " containerd --log-level=warn",
		"inside() { docker exec node \"$@\"; }",
		"until inside ctr version >/dev/null 2>&1; do [ -n \"$(docker ps -q)\" ] || { docker logs node; exit 1; }; sleep 0.1; done",
		"inside ctr image import --local /src/web.tar",
		"inside ctr run -d --net-host --env GREETING=nested " + web + " web /serve",
		"until page=$(exec 3<>/dev/tcp/localhost/8080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3); do sleep 0.1; done 2>/dev/null",
		"echo \"$page\"",
		"inside sh -c 'mkdir /m && mount -t tmpfs none /m && mount --bind /m /src && unshare -n sleep 1000 & mkdir -p /sys/fs/cgroup/pids/mine /sys/fs/cgroup/mine 2>/dev/null; ip link add name pair type veth; mount | grep -c tmpfs'",
		"inside ctr task ls",
		"echo all is up",
	}
}

// TestKind has jobs run nodes of a cluster, and ends one in order and one by
// killing its runner's stage.
func TestKind(t *testing.T) {
	j := enqueue(t, "kind", gitlab.JobSpec{Script: nested()})
	require.Equal(t, gitlab.Success, ended(t, j))
	require.Contains(t, j.Log(), "\nnested\n")
	require.Contains(t, j.Log(), "RUNNING")
	require.NoError(t, node.AwaitClean(t.Context()))

	cut := hold(t, "kind", gitlab.JobSpec{Script: nested()})
	key := cut.admission.Job
	cut.released = true
	cut.Cancel()
	require.Equal(t, gitlab.Canceled, ended(t, cut.Job))
	awaitLeft(t, key)
	require.NoError(t, node.AwaitClean(t.Context()))

	// Where the profile does not allow it, there is none.
	denied := enqueue(t, "default", gitlab.JobSpec{Script: nested()})
	require.Equal(t, gitlab.Failed, ended(t, denied))
	require.Contains(t, denied.Log(), "refused by Berth: privileged containers")
}
