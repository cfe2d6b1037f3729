package relay

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

const testJob = "j1-00000000"

func TestSocket(t *testing.T) {
	socket := socketPath(t)
	_, c := relay(t, socket, "1")
	info, err := os.Stat(socket)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())

	for _, where := range []struct{ network, address string }{{"unix", socket + ".job"}, {"tcp4", "127.0.0.1:0"}} {
		t.Run(where.network, func(t *testing.T) {
			made := 0
			listen := func() (net.Listener, error) {
				made++
				l, err := net.Listen(where.network, where.address)
				if u, ok := l.(*net.UnixListener); ok {
					u.SetUnlinkOnClose(false)
				}
				return l, err
			}
			l, err := NewKeeper(socket).Listen(t.Context(), testJob, where.network, listen)
			require.NoError(t, err)
			address := l.Addr().String()
			require.NoError(t, l.Close())

			// It takes connections while there is nobody, and another finds it.
			conn, err := net.Dial(where.network, address)
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.Write([]byte("waits"))
			require.NoError(t, err)
			again, err := NewKeeper(socket).Listen(t.Context(), testJob, where.network, listen)
			require.NoError(t, err)
			defer again.Close()
			require.Equal(t, 1, made)
			far, err := again.Accept()
			require.NoError(t, err)
			defer far.Close()
			text := make([]byte, 5)
			_, err = io.ReadFull(far, text)
			require.NoError(t, err)
			require.Equal(t, "waits", string(text))
		})
	}
	all, err := c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]Holding{testJob: {Sockets: []string{"tcp4", "unix"}}}, all)
	require.NoError(t, c.Release(t.Context(), testJob))
	_, err = net.Dial("unix", socket+".job")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = c.Get(t.Context(), testJob, "unix")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	all, err = c.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

// TestStartedAgain has a relay that was killed told of what it had.
func TestStartedAgain(t *testing.T) {
	socket := socketPath(t)
	first, _ := relay(t, socket, "1")
	k := NewKeeper(socket)
	l, err := k.Listen(t.Context(), testJob, "s", func() (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") })
	require.NoError(t, err)
	require.NoError(t, first.Process.Kill())
	_ = first.Wait()
	require.ErrorIs(t, k.Teach(t.Context()), errdefs.ErrUnavailable)
	_, err = k.Listen(t.Context(), testJob, "other", func() (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") })
	require.NoError(t, err) // it is kept as soon as it can be
	_, c := relay(t, socket, "1")
	require.NoError(t, k.Teach(t.Context()))
	all, err := c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]Holding{testJob: {Sockets: []string{"other", "s"}}}, all)
	found, err := c.Get(t.Context(), testJob, "s")
	require.NoError(t, err)
	require.Equal(t, l.Addr(), found.Addr())
}

// TestRelieved has another relay take over, while a stream goes on.
func TestRelieved(t *testing.T) {
	socket := socketPath(t)
	first, c := relay(t, socket, "1")
	l, err := NewKeeper(socket).Listen(t.Context(), testJob, "s", func() (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") })
	require.NoError(t, err)
	client, backend := joined(t, c, "unix", &Stream{})
	_, c = relay(t, socket, "2")
	v, err := c.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, "2", v.Version)
	found, err := c.Get(t.Context(), testJob, "s")
	require.NoError(t, err)
	require.Equal(t, l.Addr(), found.Addr())

	says(t, client, backend, "still there")
	require.NoError(t, client.Close())
	require.NoError(t, backend.Close())
	require.NoError(t, first.Wait())
	_, err = c.Version(t.Context()) // the socket is the second's
	require.NoError(t, err)
}

func TestEnds(t *testing.T) {
	socket := socketPath(t)
	cmd, c := relay(t, socket, "1")
	client, backend := joined(t, c, "unix", &Stream{})
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	require.NoFileExists(t, socket)
	for _, conn := range []net.Conn{client, backend} {
		rest, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Empty(t, rest)
	}
}
