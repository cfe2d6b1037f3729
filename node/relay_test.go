package node

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/relay"
)

// workers asks a job's BuildKit for something, in the background.
func workers(t *testing.T, a *api.Admission) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c, err := client.New(ctx, "unix://"+filepath.Join(a.Builds.Dir, a.Builds.Socket))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	answered := make(chan error, 1)
	go func() {
		_, err := c.ListWorkers(ctx)
		answered <- err
	}()
	return answered
}

// TestDaemonKeepsSockets has a client of a job's BuildKit wait for a berthd
// that was killed, and for one of another build.
func TestDaemonKeepsSockets(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	a := b.admit(request(t, 1, self(t)))
	require.NoError(t, <-workers(t, a))
	socket, err := os.Stat(filepath.Join(a.Builds.Dir, a.Builds.Socket))
	require.NoError(t, err)
	relays := relay.NewClient(relaySocket(b.config))
	before, err := relays.Version(t.Context())
	require.NoError(t, err)
	first, err := api.FindProcess(before.PID)
	require.NoError(t, err)

	same := func() relay.Version {
		b.end(syscall.SIGKILL)
		waits := workers(t, a)
		b.start()
		require.NoError(t, <-waits)
		again, err := os.Stat(filepath.Join(a.Builds.Dir, a.Builds.Socket))
		require.NoError(t, err)
		require.True(t, os.SameFile(socket, again))
		v, err := relays.Version(t.Context())
		require.NoError(t, err)
		return v
	}
	require.Equal(t, before, same())

	b.program = filepath.Join(b.dir, "another")
	from, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer from.Close()
	to, err := os.OpenFile(b.program, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(to, from)
	require.NoError(t, err)
	require.NoError(t, to.Close())
	after := same()
	require.NotEqual(t, before.Version, after.Version)
	require.Eventually(t, func() bool { return !first.Alive() }, time.Minute, 10*time.Millisecond)

	// A relay that is started again is told of the sockets.
	held, err := relays.List(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, held[a.Job].Sockets)
	require.NoError(t, syscall.Kill(after.PID, syscall.SIGKILL))
	require.Eventually(t, func() bool {
		all, err := relays.List(t.Context())
		return err == nil && len(all[a.Job].Sockets) == len(held[a.Job].Sockets)
	}, time.Minute, 10*time.Millisecond)
	same()

	require.NoError(t, b.client.Release(t.Context(), a.Job))
	all, err := relays.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	b.nothingLeft(a)
	b.end(syscall.SIGTERM)
	b.cmd = nil
	require.NoFileExists(t, relaySocket(b.config))
}
