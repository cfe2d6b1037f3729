package docker

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestStreams looks whether what is attached gets all there is to say.
func TestStreams(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	busybox := registry.Image(images.Busybox)
	require.Contains(t, j.must("run", "--rm", busybox, "echo", "out"), "out")
	out, err := client(t, "unix://"+j.socket(), "some input\n", "run", "--rm", "-i", busybox, "cat")
	require.NoError(t, err)
	require.Contains(t, out, "some input")
	j.must("run", "-d", "--name", "sleeper", busybox, "sleep", "1000")
	require.Equal(t, "by exec", j.must("exec", "sleeper", "echo", "by exec"))
	out, err = client(t, "unix://"+j.socket(), "some input\n", "exec", "-i", "sleeper", "cat")
	require.NoError(t, err)
	require.Equal(t, "some input\n", out)
	out, err = j.docker("exec", "sleeper", "sh", "-c", "exit 7")
	require.Error(t, err, out)
}
