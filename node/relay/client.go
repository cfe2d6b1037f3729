package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Client controls a relay. While there is none, calls fail with
// errdefs.ErrUnavailable.
type Client struct{ socket string }

// NewClient returns a client of the relay at a socket.
func NewClient(socket string) *Client { return &Client{socket} }

// Version tells which relay answers.
type Version struct {
	Version string
	PID     int
}

// Version asks which relay answers.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	err = c.call(ctx, request{Op: opVersion}, nil, func(a answer, _ []int) error {
		v = Version{a.Version, a.PID}
		return nil
	})
	return v, err
}

// Put has a job's socket kept under a name, in place of what has it.
func (c *Client) Put(ctx context.Context, job, name string, socket syscall.Conn) error {
	return c.call(ctx, request{Op: opPut, Job: job, Name: name}, []syscall.Conn{socket}, nil)
}

// Get gives a socket that is kept.
func (c *Client) Get(ctx context.Context, job, name string) (net.Listener, error) {
	var l net.Listener
	err := c.call(ctx, request{Op: opGet, Job: job, Name: name}, nil, func(_ answer, fds []int) (err error) {
		if len(fds) != 1 {
			closeFDs(fds)
			return errors.New("no socket came")
		}
		f := os.NewFile(uintptr(fds[0]), name)
		defer f.Close()
		l, err = net.FileListener(f) // a duplicate
		return err
	})
	return l, err
}

// Holding is what a relay has of a job.
type Holding struct {
	Sockets []string
	Streams int
}

// List tells what the relay has, by job.
func (c *Client) List(ctx context.Context) (map[string]Holding, error) {
	all := map[string]Holding{}
	err := c.call(ctx, request{Op: opList}, nil, func(a answer, _ []int) error {
		h := all[a.Job]
		if a.Name != "" {
			h.Sockets = append(h.Sockets, a.Name)
			slices.Sort(h.Sockets)
		}
		h.Streams += a.Streams
		all[a.Job] = h
		return nil
	})
	return all, err
}

// Release closes all that the relay has of a job.
func (c *Client) Release(ctx context.Context, job string) error {
	return c.call(ctx, request{Op: opRelease, Job: job}, nil, nil)
}

// joinTimeout is how long a client waits for a relay to take its stream.
const joinTimeout = 10 * time.Second

// ErrLost says that a stream may have been handed over, or not: whoever goes
// on with it might send things twice.
var ErrLost = errors.New("the relay has gone with the stream")

// Join hands a stream over, whose connections the caller closes then. After
// another error than ErrLost it is the caller's still.
func (c *Client) Join(ctx context.Context, job string, s *Stream) error {
	conns := make([]syscall.Conn, 2)
	for i, conn := range []net.Conn{s.Client, s.Backend} {
		switch conn := conn.(type) {
		case *net.UnixConn:
			conns[i] = conn
		case *net.TCPConn:
			conns[i] = conn
		default:
			return fmt.Errorf("a connection that is no socket: %w", errdefs.ErrInvalidArgument)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()
	r := request{Op: opJoin, Job: job, OneWay: s.OneWay, FromClient: s.FromClient, FromBackend: s.FromBackend}
	if err := withFDs(conns, func(fds []int) error { return send(conn, r, fds...) }); err != nil {
		return fmt.Errorf("call relay: %w", err)
	}
	var a answer
	if _, err := receive(conn, &a); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return a.err()
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, c.socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("call relay: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("call relay: %w: %w", err, errdefs.ErrUnavailable)
	}
	return conn.(*net.UnixConn), nil
}

// call sends a request, with descriptors, and gives the answers to a function,
// which has to close theirs.
func (c *Client) call(ctx context.Context, r request, conns []syscall.Conn, each func(answer, []int) error) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()
	err = exchange(conn, r, conns, each)
	if ctx.Err() != nil && err != nil {
		return fmt.Errorf("call relay: %w", context.Cause(ctx))
	}
	return err
}

// interrupt has a connection fail when ctx ends, until it is stopped.
func interrupt(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

func exchange(conn *net.UnixConn, r request, conns []syscall.Conn, each func(answer, []int) error) error {
	if err := withFDs(conns, func(fds []int) error { return send(conn, r, fds...) }); err != nil {
		return fmt.Errorf("call relay: %w: %w", err, errdefs.ErrUnavailable)
	}
	for {
		var a answer
		fds, err := receive(conn, &a)
		if err != nil {
			return fmt.Errorf("call relay: %w: %w", err, errdefs.ErrUnavailable)
		}
		if err := a.err(); err != nil {
			closeFDs(fds)
			return err
		}
		if a.Last || each == nil {
			closeFDs(fds)
		} else if err := each(a, fds); err != nil {
			return err
		}
		if a.Last {
			return nil
		}
	}
}
