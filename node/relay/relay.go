// Package relay keeps for berthd what must not end with it: the sockets that
// jobs connect to, whose backlogs take connections while berthd is away, and
// streams between two connections that need no more decisions. It runs as a
// process beside berthd, which hands it file descriptors over a unix socket.
// It decides nothing, reads nothing of what passes, and keeps nothing on disk.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/sirupsen/logrus"
)

// Options of Serve.
type Options struct {
	// Socket is the path of the control socket. The relay that serves it is
	// relieved: it gives its sockets, and ends with its last stream.
	Socket string
	// Version is what Client.Version tells, for berthd to see whether the
	// process is of its own build.
	Version string
	Log     *logrus.Entry
}

// Serve keeps sockets and streams until ctx ends or, once another relay has
// taken its place, until there is no stream any more.
func Serve(ctx context.Context, o Options) error {
	s := &server{version: o.Version, log: o.Log, jobs: map[string]*job{}, calls: map[net.Conn]bool{}, idle: make(chan struct{})}
	defer s.closeAll()
	if err := s.relieve(ctx, NewClient(o.Socket)); err != nil {
		return fmt.Errorf("take the place of another relay: %w", err)
	}
	l, err := listenPrivate(o.Socket)
	if err != nil {
		return err
	}
	s.listener = l
	stop := context.AfterFunc(ctx, func() {
		if s.close() { // the path is this relay's still
			_ = os.Remove(o.Socket)
		}
	})
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err == nil {
			s.answer(conn)
			continue
		}
		if !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve relay socket: %w", err)
		}
		break
	}
	select {
	case <-ctx.Done():
	case <-s.idle:
	}
	return nil
}

// listenPrivate listens on a socket that at no time is open to others. It
// takes the place of one that a killed relay left.
func listenPrivate(path string) (*net.UnixListener, error) {
	hidden := path + ".new"
	if err := os.Remove(hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale relay socket: %w", err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: hidden})
	if err != nil {
		return nil, fmt.Errorf("listen on relay socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, path)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("publish relay socket: %w", err)
	}
	return l, nil
}

// maxStreams is how many a job may have, so that it cannot starve others of
// descriptors.
const maxStreams = 1000

type server struct {
	version  string
	log      *logrus.Entry
	listener *net.UnixListener
	// idle is closed when a relay that was relieved has no stream any more.
	idle chan struct{}

	mu       sync.Mutex
	relieved bool
	closed   bool
	streams  int
	jobs     map[string]*job
	calls    map[net.Conn]bool
}

// job is what the relay has of one.
type job struct {
	// sockets are descriptors, not files: nobody here waits for them.
	sockets map[string]int
	streams map[*Stream]bool
	buffers *buffers
}
