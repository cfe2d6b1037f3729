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
	slots   chan struct{} // one for each connection
	waiting chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func sortOut(l net.Listener, builds proxy.Builds) *sorted {
	s := &sorted{
		Listener: l, builds: builds, slots: make(chan struct{}, maxConnections),
		waiting: make(chan net.Conn), done: make(chan struct{}),
	}
	go s.accept()
	return s
}

// accept sorts connections until the listener is closed.
func (s *sorted) accept() {
	defer s.end()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.done:
			return
		}
		conn, err := s.Listener.Accept()
		if err != nil {
			return
		}
		go s.sort(&connection{Conn: conn, ahead: bufio.NewReader(conn), closed: func() { <-s.slots }})
	}
}

func (s *sorted) end() { s.once.Do(func() { close(s.done) }) }

// Close ends the listener and what waits for a slot.
func (s *sorted) Close() error {
	s.end()
	return s.Listener.Close()
}

func (s *sorted) sort(conn *connection) {
	_ = conn.SetReadDeadline(time.Now().Add(firstByte))
	first, err := conn.ahead.Peek(len(preface))
	if err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		conn.Close()
		return
	}
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

// connection is one of which something has been read.
type connection struct {
	net.Conn
	ahead  *bufio.Reader
	once   sync.Once
	closed func()
}

func (c *connection) Read(b []byte) (int, error) {
	if c.ahead.Buffered() > 0 {
		return c.ahead.Read(b)
	}
	return c.Conn.Read(b)
}

func (c *connection) Close() error {
	defer c.once.Do(c.closed)
	return c.Conn.Close()
}

// CloseWrite ends one direction of a stream.
func (c *connection) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Plain gives the connection itself and what has been read of it; nil if it is
// one with TLS, of which nobody else can go on.
func (c *connection) Plain() (net.Conn, []byte) {
	switch conn := c.Conn.(type) {
	case *net.UnixConn, *net.TCPConn:
		ahead, _ := c.ahead.Peek(c.ahead.Buffered()) // no more than there is
		return conn, ahead
	}
	return nil, nil
}
