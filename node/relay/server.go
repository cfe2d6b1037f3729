package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// answer serves a connection to the control socket in the background.
func (s *server) answer(conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return
	}
	s.calls[conn] = true
	go func() {
		defer func() {
			s.mu.Lock()
			delete(s.calls, conn)
			s.mu.Unlock()
			conn.Close()
		}()
		for {
			var r request
			fds, err := receive(conn, &r)
			if err != nil {
				return // it has gone, or is none of berthd's
			}
			if err := s.serve(conn, r, fds); err != nil {
				return // nobody waits for the answer any more
			}
		}
	}()
}

// serve does what a request says. The descriptors are taken or closed.
func (s *server) serve(conn *net.UnixConn, r request, fds []int) error {
	wanted := map[string]int{opPut: 1, opJoin: 2}[r.Op]
	if len(fds) != wanted {
		closeFDs(fds)
		return send(conn, failure(fmt.Errorf("%s with %d descriptors: %w", r.Op, len(fds), errdefs.ErrInvalidArgument)))
	}
	last := answer{Last: true}
	var err error
	switch r.Op {
	case opVersion:
		err = send(conn, answer{Version: s.version, PID: os.Getpid()})
	case opPut:
		err = s.put(r.Job, r.Name, fds[0])
	case opGet:
		err = s.get(conn, r.Job, r.Name)
	case opList:
		for _, one := range s.list() {
			if err := send(conn, one); err != nil {
				return err
			}
		}
	case opRelease:
		s.release(r.Job)
	case opJoin:
		err = s.join(r, fds)
	case opRelieve:
		err = s.giveAll(conn)
	case opTaken:
		defer s.retire() // the process may end at once
	default:
		err = fmt.Errorf("operation %q: %w", r.Op, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		last = failure(err)
	}
	return send(conn, last)
}

// of finds what there is of a job, or makes it; s.mu is held.
func (s *server) of(key string) *job {
	j := s.jobs[key]
	if j == nil {
		j = &job{sockets: map[string]int{}, streams: map[*Stream]bool{}, buffers: newBuffers()}
		s.jobs[key] = j
	}
	return j
}

// drop forgets a job of which there is nothing; s.mu is held.
func (s *server) drop(key string) {
	if j := s.jobs[key]; j != nil && len(j.sockets)+len(j.streams) == 0 {
		delete(s.jobs, key)
	}
}

// put keeps a socket, instead of another of that name.
func (s *server) put(key, name string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.relieved {
		_ = unix.Close(fd)
		return errors.New("this relay ends")
	}
	j := s.of(key)
	if old, ok := j.sockets[name]; ok {
		_ = unix.Close(old)
	}
	j.sockets[name] = fd
	return nil
}

func (s *server) get(conn *net.UnixConn, key, name string) error {
	s.mu.Lock()
	fd, err := -1, error(nil)
	if j := s.jobs[key]; j != nil {
		if kept, ok := j.sockets[name]; ok {
			fd, err = unix.FcntlInt(uintptr(kept), unix.F_DUPFD_CLOEXEC, 0)
		}
	}
	s.mu.Unlock()
	if err == nil && fd < 0 {
		err = fmt.Errorf("socket %s of job %s: %w", name, key, errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	err = send(conn, answer{Job: key, Name: name}, fd)
	_ = unix.Close(fd) // a duplicate
	return err
}

func (s *server) list() (all []answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, j := range s.jobs {
		for name := range j.sockets {
			all = append(all, answer{Job: key, Name: name})
		}
		if len(j.streams) > 0 {
			all = append(all, answer{Job: key, Streams: len(j.streams)})
		}
	}
	return all
}

// release closes all that there is of a job.
func (s *server) release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[key]
	if j == nil {
		return
	}
	for _, fd := range j.sockets {
		_ = unix.Close(fd)
	}
	for stream := range j.streams {
		stream.Close()
	}
	delete(s.jobs, key)
}

// join passes a stream on, in the background, until it ends or the job is
// released.
func (s *server) join(r request, fds []int) error {
	conns := make([]net.Conn, len(fds))
	var errs []error
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), r.Job)
		var err error
		conns[i], err = net.FileConn(f) // a duplicate
		f.Close()
		errs = append(errs, err)
	}
	stream := &Stream{Client: conns[0], Backend: conns[1], FromClient: r.FromClient, FromBackend: r.FromBackend, OneWay: r.OneWay}
	err := errors.Join(errs...)
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.of(r.Job)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case s.closed || s.relieved:
		err = errors.New("this relay ends")
	case len(j.streams) >= maxStreams:
		err = fmt.Errorf("the job has %d streams already: %w", maxStreams, errdefs.ErrResourceExhausted)
	}
	if err != nil {
		s.drop(r.Job)
		stream.Close()
		return err
	}
	j.streams[stream] = true
	s.streams++
	go func() {
		stream.copy(j.buffers)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(j.streams, stream)
		s.drop(r.Job)
		s.streams--
		s.rest()
	}()
	return nil
}

// rest notes that a relay that was relieved has nothing left to do; s.mu is
// held.
func (s *server) rest() {
	if s.relieved && s.streams == 0 {
		close(s.idle)
	}
}

// giveAll gives all sockets to the relay that takes this one's place.
func (s *server) giveAll(conn *net.UnixConn) error {
	s.mu.Lock()
	defer s.mu.Unlock() // nothing may come in between
	for key, j := range s.jobs {
		for name, fd := range j.sockets {
			if err := send(conn, answer{Job: key, Name: name}, fd); err != nil {
				return err
			}
		}
	}
	return nil
}

// retire leaves the place to another relay, which has all sockets.
func (s *server) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relieved || s.closed {
		return
	}
	s.relieved = true
	s.listener.Close()
	for key, j := range s.jobs {
		for name, fd := range j.sockets {
			_ = unix.Close(fd)
			delete(j.sockets, name)
		}
		s.drop(key)
	}
	s.log.WithField("streams", s.streams).Info("another relay has taken over")
	s.rest()
}

// relieve takes the sockets of the relay that serves, if there is one.
func (s *server) relieve(ctx context.Context, c *Client) error {
	conn, err := c.dial(ctx)
	if errdefs.IsUnavailable(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()
	if err := exchange(conn, request{Op: opRelieve}, nil, func(a answer, fds []int) error {
		if len(fds) != 1 {
			closeFDs(fds)
			return errors.New("a socket without a descriptor")
		}
		return s.put(a.Job, a.Name, fds[0])
	}); err != nil {
		return err
	}
	return exchange(conn, request{Op: opTaken}, nil, nil)
}

// close ends the control socket, and tells whether it was this relay's.
func (s *server) close() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.listener.Close()
	for conn := range s.calls {
		conn.Close()
	}
	return !s.relieved
}

// closeAll closes all that there is.
func (s *server) closeAll() {
	for _, one := range s.list() {
		s.release(one.Job)
	}
}
