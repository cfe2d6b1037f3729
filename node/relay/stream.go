package relay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// linger is how long a client may take to close a stream that the backend has
// closed. Until then what it sends is read and dropped: a connection that is
// closed with something unread may lose what the client has not read yet.
const linger = 10 * time.Second

// Stream is a client's connection and a backend's, each of which gets what the
// other sends.
type Stream struct {
	Client, Backend net.Conn
	// FromClient and FromBackend have been read of them already.
	FromClient, FromBackend []byte
	// OneWay drops what the client sends, and has its end be that of the
	// stream, as HTTP does once a request is read.
	OneWay bool

	ended atomic.Int32 // of the two directions
}

// Close ends the stream.
func (s *Stream) Close() {
	for _, conn := range []net.Conn{s.Client, s.Backend} {
		if conn != nil {
			conn.Close()
		}
	}
}

// Copy passes on what each side sends, the end of it too, until both have
// ended or one is gone, and closes both.
func (s *Stream) Copy() { s.copy(newBuffers()) }

func (s *Stream) copy(b *buffers) {
	defer s.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if s.OneWay {
			s.watchClient(b)
		} else {
			s.fromClient(b)
		}
	}()
	s.fromBackend(b)
	<-sent
}

// end notes that one direction has ended, and tells whether the other has.
func (s *Stream) end() bool { return s.ended.Add(1) == 2 }

func (s *Stream) watchClient(b *buffers) {
	_ = b.drain(s.Client) // the end or an error, it is the same
	s.Close()
}

func (s *Stream) fromClient(b *buffers) {
	err := b.pass(s.Backend, s.FromClient, s.Client)
	var unread *writeError
	switch {
	case err == nil:
		_ = closeWrite(s.Backend) // else it is gone, and the other direction ends
	case errors.As(err, &unread):
		// The backend reads no more, but may have something to say still.
		err = b.drain(s.Client)
	}
	if err != nil || s.end() {
		s.Close()
		return
	}
	if gone(s.Client) {
		s.Close()
	}
}

func (s *Stream) fromBackend(b *buffers) {
	err := b.pass(s.Client, s.FromBackend, s.Backend)
	if err == nil {
		err = closeWrite(s.Client)
	}
	if err != nil || s.end() {
		s.Close()
		return
	}
	if gone(s.Backend) {
		if s.Client.SetReadDeadline(time.Now().Add(linger)) != nil {
			s.Close()
		}
	}
}

// gone waits until the peer of a connection has closed it altogether. For who
// reads that is no other than the end of what it sends.
func gone(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 0) // tells of POLLHUP and POLLERR
		return n > 0 && err == nil
	}) == nil
}

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// writeError is a failure of the side that is written to.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// pass writes what was read before, and then what comes, until its end.
func (b *buffers) pass(to net.Conn, ahead []byte, from net.Conn) error {
	for {
		if len(ahead) > 0 {
			if _, err := to.Write(ahead); err != nil {
				return &writeError{err}
			}
		}
		done, err := b.read(from, func(some []byte) error {
			_, err := to.Write(some)
			return err
		})
		if done || err != nil {
			return err
		}
		ahead = nil
	}
}

// drain reads what comes until its end.
func (b *buffers) drain(from net.Conn) error {
	for {
		done, err := b.read(from, func([]byte) error { return nil })
		if done || err != nil {
			return err
		}
	}
}

// read reads once and gives what there was to a function; done is the end. It
// has a buffer only while there is something in it.
func (b *buffers) read(from net.Conn, use func([]byte) error) (done bool, err error) {
	var (
		n      int
		buffer []byte
		put    func()
	)
	if c, ok := from.(syscall.Conn); ok {
		raw, err := c.SyscallConn()
		if err != nil {
			return false, err
		}
		var failed error
		if err := raw.Read(func(fd uintptr) bool {
			buffer, put = b.take()
			for {
				n, failed = unix.Read(int(fd), buffer)
				if !errors.Is(failed, unix.EINTR) {
					break
				}
			}
			if errors.Is(failed, unix.EAGAIN) {
				put()
				return false
			}
			return true
		}); err != nil {
			return false, err
		}
		if n <= 0 || failed != nil {
			put()
			return failed == nil, failed
		}
	} else {
		buffer, put = b.take()
		n, err = from.Read(buffer)
		if n == 0 {
			put()
			if errors.Is(err, io.EOF) {
				return true, nil
			}
			return false, err
		}
	}
	defer put()
	if err := use(buffer[:n]); err != nil {
		return false, &writeError{err}
	}
	return false, nil
}
