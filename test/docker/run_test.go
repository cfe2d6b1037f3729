package docker

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestJob has a job use docker as people do.
func TestJob(t *testing.T) {
	web := images.Web
	j := enqueue(t, "default", gitlab.JobSpec{Script: []string{
		`export IMAGE=` + registry.Image(images.Busybox) + ` WEB=` + registry.Image(web),
		`docker version`,
		`docker run --rm $IMAGE echo "hello from a container"`,
		`docker run --rm -v "$CI_PROJECT_DIR:/src" $IMAGE cat /src/src/main`,
		`docker run -d --name web -p 8080:8080 -e GREETING=welcome $WEB`,
		`wget() { docker run --rm $IMAGE wget -q -O - "$@"; }`,
		`for i in $(seq 50); do wget http://web:8080 && break; sleep 0.1; done`,
		`docker ps`,
		`exec 3<>/dev/tcp/localhost/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`,
		`exec 3<>/dev/tcp/web/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`,
		`DOCKER_HOST=tcp://docker:2375 docker exec web echo "by tcp"`,
	}})
	require.Equal(t, gitlab.Success, ended(t, j))
	for _, text := range []string{"\nhello from a container\n", "\ncontent of main\n", "\nwelcome\n", "\nby tcp\n", "0.0.0.0:8080->8080/tcp"} {
		require.Contains(t, j.Log(), text)
	}
}

// TestInit has a container whose first process is docker's own.
func TestInit(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	out := j.must("run", "--init", "--rm", busybox, "ps", "-o", "pid,args")
	require.Regexp(t, `(?m)^ *1 /sbin/docker-init -- ps -o pid,args$`, out)
	// It reaps what nobody waits for, and passes signals on.
	j.must("run", "-d", "--init", "--name", "reaped", busybox, "sh", "-c", "(sleep 0 &) ; trap 'exit 7' TERM; while :; do sleep 0.1; done")
	require.Eventually(t, func() bool {
		return !strings.Contains(j.must("exec", "reaped", "ps", "-o", "stat,args"), "Z ")
	}, 10*time.Second, 10*time.Millisecond)
	j.must("stop", "reaped")
	require.Equal(t, "7", j.must("inspect", "-f", "{{.State.ExitCode}}", "reaped"))
}
