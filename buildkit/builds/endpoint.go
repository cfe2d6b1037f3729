package builds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// Endpoint is a job's BuildKit.
type Endpoint struct {
	service    *Service
	job        Job
	dir        string
	runner     *runner
	worker     *jobWorker
	sessions   *session.Manager
	controller *control.Controller
	transport  *transport
	registries *registries
	server     *grpc.Server
	conns      *conns

	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  atomic.Bool
	serves sync.WaitGroup // of requests over HTTP/1, and listeners
	mu     sync.Mutex
	closed bool
	undos  []func() error
}

var errClosed = errors.New("the job has ended")

// Serve answers a job's builds on a listener, until Close. Without one it answers connections that it is handed.
func (s *Service) Serve(l net.Listener, j Job) (_ *Endpoint, err error) {
	if err := j.validate(); err != nil {
		return nil, err
	}
	if err := s.admit(j.Key); err != nil {
		return nil, err
	}
	e := &Endpoint{service: s, job: j, dir: s.jobDir(j.id()), conns: newConns()}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	e.undo(func() error { s.dismiss(j.Key); return nil })
	e.undo(func() error { s.claims.release(j.Key); return nil })
	defer func() {
		if err != nil {
			err = errors.Join(err, e.unwind())
		}
	}()
	if err := os.MkdirAll(e.dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory of builds: %w", err)
	}
	e.undo(func() error { return os.RemoveAll(e.dir) })
	if e.sessions, err = session.NewManager(); err != nil {
		return nil, fmt.Errorf("make session manager: %w", err)
	}
	network := &web{network: j.Network}
	e.undo(network.close)
	e.transport = newTransport(network)
	e.undo(func() error { e.transport.CloseIdleConnections(); return nil })
	e.registries = newRegistries(j, &s.layers, e.sessions)
	e.undo(func() error { e.registries.close(); return nil })
	e.runner = s.newRunner(j, e.dir)
	if e.worker, err = s.newWorker(j, e.runner, e.transport, e.registries); err != nil {
		return nil, err
	}
	if err := e.newController(e.worker); err != nil {
		return nil, err
	}
	e.server = grpc.NewServer(
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, e.unary),
		grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, e.stream),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.WaitForHandlers(true),
	)
	healthv1.RegisterHealthServer(e.server, health.NewServer())
	e.controller.Register(e.server)
	e.serves.Go(func() { _ = e.server.Serve(e.conns) }) // ends with Close
	if l != nil {
		e.serves.Go(func() { _ = e.server.Serve(l) })
	}
	return e, nil
}

// undo notes what Close does, last first.
func (e *Endpoint) undo(f func() error) { e.undos = append(e.undos, f) }

func (e *Endpoint) unwind() error {
	e.cancel(errClosed)
	e.ended.Store(true)
	var errs []error
	for _, f := range slices.Backward(e.undos) {
		errs = append(errs, f())
	}
	e.undos = nil
	return errors.Join(errs...)
}

// ServeConn answers on a connection that speaks HTTP/2 from its first byte ("PRI "), and returns at once.
func (e *Endpoint) ServeConn(c net.Conn) { e.conns.put(c) }

// Close ends all builds of the job, and returns when none of its RUN steps lives. After an error it may be called again.
func (e *Endpoint) Close(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.cancel(errClosed)
	stopped := make(chan struct{})
	go func() {
		e.server.Stop() // closes the listeners and waits for what is asked
		e.serves.Wait()
		close(stopped)
	}()
	var errs []error
	select {
	case <-stopped:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("wait for builds of %s: %w", e.job.Key, context.Cause(ctx)))
	}
	errs = append(errs, e.runner.close(ctx))
	// BuildKit removes them; what it could not is killed.
	undo := context.WithoutCancel(ctx)
	errs = append(errs, e.service.removeContainers(undo, e.runner.prefix))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	e.closed = true
	return e.unwind()
}

// conns is a listener for connections that were accepted elsewhere.
type conns struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func newConns() *conns { return &conns{c: make(chan net.Conn), done: make(chan struct{})} }

func (l *conns) put(c net.Conn) {
	select {
	case l.c <- c:
	case <-l.done:
		c.Close()
	}
}

func (l *conns) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *conns) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (*conns) Addr() net.Addr { return &net.UnixAddr{Name: "handed", Net: "unix"} }
