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
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/docker/proxy"
	"gitlab.com/berth-ci/berth/node/network"
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

// callPatience is how long berthd, when it ends, waits for calls under way.
const callPatience = 2 * time.Second

// What is in an endpoint's directory: the socket, in a directory that
// containers get whole, since a socket that was lost is made again; and
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
	local, err := d.listen(job, socket, func() (net.Listener, error) { return listenIn(dir) })
	if err != nil {
		return nil, err
	}
	e.listeners = append(e.listeners, local)
	plain, err := d.listen(job, plainPort, func() (net.Listener, error) { return listenAt(job.Network, plainPort) })
	if err != nil {
		return nil, err
	}
	e.listeners = append(e.listeners, plain)
	if job.TLS {
		settings, err := certificates(filepath.Join(job.Dir, certsDir), job.Network.Gateway)
		if err != nil {
			return nil, err
		}
		l, err := d.listen(job, tlsPort, func() (net.Listener, error) { return listenAt(job.Network, tlsPort) })
		if err != nil {
			return nil, err
		}
		e.listeners = append(e.listeners, tls.NewListener(l, settings))
	}
	for i, l := range e.listeners {
		s := sortOut(l, view.Builds())
		e.listeners[i] = s
		go func() { _ = e.server.Serve(s) }() // until it is closed
	}
	return e, nil
}

// listen gives the listener that a job has by a name, or makes it. It outlives
// berthd: who connects meanwhile waits.
func (d *Docker) listen(job Job, name string, listen func() (net.Listener, error)) (net.Listener, error) {
	return d.settings.Relay.Listen(d.life, job.Key, "docker "+name, listen)
}

// listenAt listens on a port of a job's network.
func listenAt(n network.Network, port string) (l net.Listener, err error) {
	err = namespace.Do(n.Netns, func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(n.Gateway.String(), port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on the job's network: %w", err)
	}
	return l, nil
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

// leave takes no more calls, lets those under way end if they are short, and
// closes the endpoint.
func (e *endpoint) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	_ = e.server.Shutdown(ctx) // what takes longer is cut off
	e.close()
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
