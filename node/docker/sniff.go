package docker

import (
	"bufio"
	"net"
	"sync"
	"time"

	"gitlab.com/berth-ci/berth/node/docker/proxy"
)

// firstByte is how long a client may take to say something.
const firstByte = time.Minute

// preface begins what clients of BuildKit's own API say, which is HTTP/2.
const preface = "PRI "

// sorted is a listener of which connections that speak HTTP/2 from their first
// byte go to BuildKit.
type sorted struct {
	net.Listener
	builds  proxy.Builds
	waiting chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func sortOut(l net.Listener, builds proxy.Builds) *sorted {
	s := &sorted{Listener: l, builds: builds, waiting: make(chan net.Conn), done: make(chan struct{})}
	go s.accept()
	return s
}

// accept sorts connections until the listener is closed.
func (s *sorted) accept() {
	defer s.once.Do(func() { close(s.done) })
	for {
		conn, err := s.Listener.Accept()
		if err != nil {
			return
		}
		go s.sort(conn)
	}
}

func (s *sorted) sort(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(firstByte))
	read := bufio.NewReader(conn)
	first, err := read.Peek(len(preface))
	if err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		conn.Close()
		return
	}
	conn = peeked{conn, read}
	if string(first) == preface {
		if s.builds == nil {
			conn.Close()
			return
		}
		s.builds.ServeConn(conn)
		return
	}
	select {
	case s.waiting <- conn:
	case <-s.done:
		conn.Close()
	}
}

// Accept gives a connection that speaks HTTP/1.
func (s *sorted) Accept() (net.Conn, error) {
	select {
	case conn := <-s.waiting:
		return conn, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// peeked is a connection of which something has been read.
type peeked struct {
	net.Conn
	ahead *bufio.Reader
}

func (p peeked) Read(b []byte) (int, error) {
	if p.ahead.Buffered() > 0 {
		return p.ahead.Read(b)
	}
	return p.Conn.Read(b)
}

// CloseWrite ends one direction of a stream.
func (p peeked) CloseWrite() error {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
