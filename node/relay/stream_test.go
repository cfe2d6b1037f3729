package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// pair connects two ends.
func pair(t testing.TB, network string) (near, far net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = socketPath(t)
	}
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	defer l.Close()
	near, err = net.Dial(network, l.Addr().String())
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// joined gives the outer ends of a stream that a relay has.
func joined(t testing.TB, c *Client, network string, s *Stream) (client, backend net.Conn) {
	t.Helper()
	client, s.Client = pair(t, network)
	s.Backend, backend = pair(t, "unix")
	require.NoError(t, c.Join(t.Context(), testJob, s))
	s.Close()
	require.NoError(t, client.SetDeadline(time.Now().Add(time.Minute)))
	require.NoError(t, backend.SetDeadline(time.Now().Add(time.Minute)))
	return client, backend
}

// says sends a line and reads it at the other end.
func says(t testing.TB, from, to net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(from, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(to, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

func streams(t testing.TB, c *Client) int {
	t.Helper()
	all, err := c.List(t.Context())
	require.NoError(t, err)
	return all[testJob].Streams
}

func TestStream(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	for _, network := range []string{"unix", "tcp4"} {
		t.Run(network, func(t *testing.T) {
			client, backend := joined(t, c, network, &Stream{FromClient: []byte("from client"), FromBackend: []byte("from backend")})
			says(t, backend, client, "") // what was read before comes first
			for conn, text := range map[net.Conn]string{client: "from backend", backend: "from client"} {
				got := make([]byte, len(text))
				_, err := io.ReadFull(conn, got)
				require.NoError(t, err)
				require.Equal(t, text, string(got))
			}
			says(t, client, backend, "there")
			says(t, backend, client, "and back")
			require.Equal(t, 1, streams(t, c))
			client.Close()
			if network == "unix" { // of TCP nobody knows before something is sent
				_, err := backend.Read(make([]byte, 1))
				require.ErrorIs(t, err, io.EOF)
			}
			backend.Close()
			await(t, func() bool { return streams(t, c) == 0 })
		})
	}
}

// TestHalfClosed has each end finish first.
func TestHalfClosed(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	for _, network := range []string{"unix", "tcp4"} {
		for _, first := range []string{"client", "backend"} {
			t.Run(network+" "+first, func(t *testing.T) {
				client, backend := joined(t, c, network, &Stream{})
				one, other := client, backend
				if first == "backend" {
					one, other = backend, client
				}
				_, err := io.WriteString(one, "the last")
				require.NoError(t, err)
				require.NoError(t, closeWrite(one))
				got, err := io.ReadAll(other)
				require.NoError(t, err)
				require.Equal(t, "the last", string(got))
				says(t, other, one, "an answer")
				says(t, other, one, "and more")
				require.Equal(t, 1, streams(t, c))
				require.NoError(t, closeWrite(other))
				got, err = io.ReadAll(one)
				require.NoError(t, err)
				require.Empty(t, got)
				await(t, func() bool { return streams(t, c) == 0 })
			})
		}
	}
}

// TestOneWay drops what the client sends.
func TestOneWay(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	client, backend := joined(t, c, "unix", &Stream{OneWay: true})
	_, err := io.WriteString(client, "GET /another HTTP/1.1\r\n\r\n")
	require.NoError(t, err)
	says(t, backend, client, "an answer")
	require.NoError(t, closeWrite(client)) // is its end
	rest, err := io.ReadAll(backend)
	require.NoError(t, err)
	require.Empty(t, rest)

	// The end of the backend ends it, and loses nothing, whatever is unread.
	client, backend = joined(t, c, "tcp4", &Stream{OneWay: true})
	_, err = io.WriteString(client, "GET /another HTTP/1.1\r\n\r\n")
	require.NoError(t, err)
	_, err = backend.Write(bytes.Repeat([]byte("x"), 1<<16))
	require.NoError(t, err)
	backend.Close()
	rest, err = io.ReadAll(client)
	require.NoError(t, err)
	require.Len(t, rest, 1<<16)
	client.Close()
	await(t, func() bool { return streams(t, c) == 0 })
}

// TestBackendThatReadsNothing ends while the client still sends: what it said
// arrives.
func TestBackendThatReadsNothing(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	client, backend := joined(t, c, "unix", &Stream{})
	go func() { _, _ = io.Copy(client, endless{}) }()
	_, err := backend.Read(make([]byte, 1))
	require.NoError(t, err)
	said := bytes.Repeat([]byte("x"), 1<<17)
	_, err = backend.Write(said)
	require.NoError(t, err)
	backend.Close()
	got := make([]byte, len(said))
	_, err = io.ReadFull(client, got)
	require.NoError(t, err)
	client.Close()
	await(t, func() bool { return streams(t, c) == 0 })
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// TestBig passes a lot in both directions at once, beside clients that read
// nothing.
func TestBig(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	for range maxLarge + 8 {
		_, backend := joined(t, c, "unix", &Stream{})
		go func() { _, _ = io.Copy(backend, endless{}) }()
	}
	const size = 50 << 20
	for _, network := range []string{"unix", "tcp4"} {
		client, backend := joined(t, c, network, &Stream{})
		var all sync.WaitGroup
		for i, ends := range [][2]net.Conn{{client, backend}, {backend, client}} {
			sent, got := sha256.New(), sha256.New()
			all.Go(func() {
				random := rand.NewChaCha8([32]byte{byte(i)})
				_, err := io.CopyN(io.MultiWriter(sent, ends[0]), random, size)
				if err != nil || closeWrite(ends[0]) != nil {
					t.Errorf("send: %v", err)
				}
			})
			all.Go(func() {
				if n, err := io.Copy(got, ends[1]); n != size || err != nil {
					t.Errorf("%d bytes came: %v", n, err)
				}
			})
			defer func() { require.Equal(t, sent.Sum(nil), got.Sum(nil)) }()
		}
		all.Wait()
	}
}

func TestRelease(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	client, backend := joined(t, c, "unix", &Stream{})
	require.NoError(t, c.Release(t.Context(), testJob))
	for _, conn := range []net.Conn{client, backend} {
		_, err := conn.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
	await(t, func() bool { return streams(t, c) == 0 })
}

// TestBounded refuses more streams than a job may have; they stay the
// caller's.
func TestBounded(t *testing.T) {
	_, c := relay(t, socketPath(t), "1")
	client, inner := pair(t, "unix")
	outer, backend := pair(t, "unix")
	s := &Stream{Client: inner, Backend: outer}
	for range maxStreams {
		require.NoError(t, c.Join(t.Context(), testJob, s))
	}
	require.ErrorIs(t, c.Join(t.Context(), testJob, s), errdefs.ErrResourceExhausted)
	require.NoError(t, c.Join(t.Context(), "j2-00000000", s))
	require.NoError(t, c.Release(t.Context(), testJob))
	require.NoError(t, c.Release(t.Context(), "j2-00000000"))
	go s.Copy()
	says(t, client, backend, "by the caller")
}

// TestKilled kills each party in the middle of a stream.
func TestKilled(t *testing.T) {
	for _, who := range []string{"client", "backend", "berthd", "relay"} {
		t.Run(who, func(t *testing.T) {
			socket := socketPath(t)
			r, c := relay(t, socket, "1")
			listen := func() *net.UnixListener {
				l, err := net.Listen("unix", socketPath(t))
				require.NoError(t, err)
				t.Cleanup(func() { l.Close() })
				return l.(*net.UnixListener)
			}
			accept := func(l *net.UnixListener) net.Conn {
				require.NoError(t, l.SetDeadline(time.Now().Add(time.Minute)))
				conn, err := l.Accept()
				require.NoError(t, err)
				t.Cleanup(func() { conn.Close() })
				require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
				return conn
			}
			// berthd connects with both; the relay has copies only.
			clients, backends := listen(), listen()
			b := start(t, "berthd", socket, clients.Addr().String()+" "+backends.Addr().String())
			client, backend := accept(clients), accept(backends)
			await(t, func() bool { return streams(t, c) == 1 })
			says(t, client, backend, "one")
			kill := func(cmd *exec.Cmd) {
				require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
				_ = cmd.Wait()
			}
			switch who {
			case "client":
				require.NoError(t, client.Close()) // as the kernel does
				_, err := backend.Read(make([]byte, 1))
				require.ErrorIs(t, err, io.EOF)
				await(t, func() bool { return streams(t, c) == 0 })
			case "backend":
				require.NoError(t, backend.Close())
				_, err := client.Read(make([]byte, 1))
				require.ErrorIs(t, err, io.EOF)
				client.Close()
				await(t, func() bool { return streams(t, c) == 0 })
			case "berthd":
				kill(b)
				says(t, client, backend, "two")
				says(t, backend, client, "three")
			case "relay":
				kill(r)
				for _, conn := range []net.Conn{client, backend} {
					_, err := conn.Read(make([]byte, 1))
					if !errors.Is(err, syscall.ECONNRESET) {
						require.ErrorIs(t, err, io.EOF)
					}
				}
			}
		})
	}
}

// berthd hands a stream over, and waits to be killed.
func berthd(ctx context.Context, socket, addresses string) error {
	client, backend, _ := strings.Cut(addresses, " ")
	s := &Stream{}
	var err error
	if s.Client, err = net.Dial("unix", client); err != nil {
		return err
	}
	if s.Backend, err = net.Dial("unix", backend); err != nil {
		return err
	}
	if err := NewClient(socket).Join(ctx, testJob, s); err != nil {
		return err
	}
	s.Close()
	<-ctx.Done()
	return nil
}

// BenchmarkStream tells how fast bytes pass, beside a bare connection.
func BenchmarkStream(b *testing.B) {
	_, c := relay(b, socketPath(b), "1")
	const size = 64 << 20
	for _, name := range []string{"bare", "relay"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				var client, backend net.Conn
				if name == "bare" {
					client, backend = pair(b, "unix")
				} else {
					client, backend = joined(b, c, "unix", &Stream{})
				}
				go func() {
					w := bufio.NewWriterSize(backend, 32<<10)
					_, _ = io.CopyN(w, endless{}, size)
					_ = w.Flush()
					backend.Close()
				}()
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, client, make([]byte, 32<<10)); n != size || err != nil {
					b.Fatal(fmt.Errorf("%d bytes: %w", n, err))
				}
				client.Close()
			}
		})
	}
}
