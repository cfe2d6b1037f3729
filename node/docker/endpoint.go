package docker

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/docker/proxy"
	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Ports of docker:dind.
const (
	plainPort = "2375"
	tlsPort   = "2376"
)

// maxConnections is how many a job may have to each of its listeners, so that
// it cannot starve others of descriptors.
const maxConnections = 1000

// What is in an endpoint's directory: the socket, in a directory that
// containers get whole, since a later berthd makes another socket; and
// certificates.
const (
	socketDir = "run"
	socket    = "docker.sock"
	certsDir  = "certs"
)

// endpoint is where a job reaches its docker.
type endpoint struct {
	job       Job
	view      *proxy.Proxy
	server    *http.Server
	listeners []net.Listener
	end       context.CancelFunc
	complain  func() error
	calls     sync.WaitGroup
}

// open makes the endpoint's listeners.
func (d *Docker) open(job Job, view *proxy.Proxy) (_ *endpoint, err error) {
	life, end := context.WithCancel(d.life)
	complaints := d.log.WithField("job", job.Key).WriterLevel(logrus.DebugLevel)
	e := &endpoint{job: job, view: view, end: end, complain: complaints.Close}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	e.server = &http.Server{
		Handler:           d.awaiting(e, view),
		BaseContext:       func(net.Listener) context.Context { return life },
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          stdlog.New(complaints, "", 0),
	}
	dir := filepath.Join(job.Dir, socketDir)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	local, err := listenIn(dir)
	if err != nil {
		return nil, err
	}
	e.listeners = append(e.listeners, local)
	var settings *tls.Config
	if job.TLS {
		if settings, err = certificates(filepath.Join(job.Dir, certsDir), job.Network.Gateway); err != nil {
			return nil, err
		}
	}
	if err := namespace.Do(job.Network.Netns, func() error {
		l, err := net.Listen("tcp4", net.JoinHostPort(job.Network.Gateway.String(), plainPort))
		if err != nil {
			return err
		}
		e.listeners = append(e.listeners, l)
		if settings == nil {
			return nil
		}
		if l, err = net.Listen("tcp4", net.JoinHostPort(job.Network.Gateway.String(), tlsPort)); err != nil {
			return err
		}
		e.listeners = append(e.listeners, tls.NewListener(l, settings))
		return nil
	}); err != nil {
		return nil, fmt.Errorf("listen on the job's network: %w", err)
	}
	for i, l := range e.listeners {
		l = netutil.LimitListener(l, maxConnections)
		e.listeners[i] = l
		go func() { _ = e.server.Serve(sortOut(l, view.Builds())) }() // until it is closed
	}
	return e, nil
}

// listenIn listens on the socket in a directory, however long its path. The
// job's users may connect; others do not get to the directory.
func listenIn(dir string) (net.Listener, error) {
	path := filepath.Join(dir, socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer at.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", at.Fd(), socket)})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}

// close ends the endpoint and all calls to it.
func (e *endpoint) close() {
	e.end()
	for _, l := range e.listeners {
		l.Close()
	}
	if e.server != nil {
		_ = e.server.Close()
	}
	_ = e.complain()
}

// drain waits until no call is under way that could still make something.
func (e *endpoint) drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { e.calls.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for docker calls under way: %w", context.Cause(ctx))
	}
}

// awaiting lets calls wait until the daemon serves.
func (d *Docker) awaiting(e *endpoint, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.calls.Add(1)
		defer e.calls.Done()
		if err := d.daemon.Wait(r.Context()); err != nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": err.Error()})
			return
		}
		h.ServeHTTP(w, r)
	})
}
