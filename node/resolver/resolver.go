// Package resolver is the DNS server of jobs. It listens inside the jobs'
// network namespaces, knows the names of their services and forwards the rest
// to the node's own servers. It runs as a process beside berthd, so that jobs
// keep their DNS while berthd is away; berthd controls it over a unix socket.
// It keeps nothing on disk and does not cache.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gofrs/flock"
	"github.com/sirupsen/logrus"
)

// Options of Serve.
type Options struct {
	// Socket is the path of the control socket.
	Socket string
	// Version is what Client.Version tells, for berthd to see whether the
	// process is of its own build.
	Version string
	// ResolvConf lists files with the node's name servers. The second is read
	// when the first knows only systemd-resolved's local stub. Empty means
	// the usual ones.
	ResolvConf []string
	Log        *logrus.Entry
}

// Zone is what the resolver does for a job.
type Zone struct {
	// Netns is the file of the namespace to listen in, Addr the address.
	Netns string     `json:"netns"`
	Addr  netip.Addr `json:"addr"`
	// Names are the job's own. They answer to A and PTR queries.
	Names map[string][]netip.Addr `json:"names,omitempty"`
	// Upstreams are asked instead of the node's servers: addresses, with a
	// port where it is not 53.
	Upstreams []string `json:"upstreams,omitempty"`
}

// Version tells which resolver answers.
type Version struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
}

type server struct {
	version string
	log     *logrus.Entry
	host    *hostServers

	mu    sync.Mutex
	zones map[string]*zone
}

// Serve answers on the control socket and in the zones until ctx ends.
func Serve(ctx context.Context, o Options) error {
	if len(o.ResolvConf) == 0 {
		o.ResolvConf = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
	}
	lock := flock.New(o.Socket + ".lock")
	if ok, err := lock.TryLock(); err != nil {
		return fmt.Errorf("lock resolver socket: %w", err)
	} else if !ok {
		return fmt.Errorf("another resolver serves %s: %w", o.Socket, errdefs.ErrUnavailable)
	}
	defer func() { _ = lock.Unlock() }()
	listener, err := listenPrivate(o.Socket)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(o.Socket) }()

	s := &server{version: o.Version, log: o.Log, host: &hostServers{files: o.ResolvConf}, zones: map[string]*zone{}}
	defer s.closeAll()
	control := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if control.Shutdown(grace) != nil {
			_ = control.Close()
		}
	})
	defer stop()
	if err := control.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve resolver socket: %w", err)
	}
	return nil
}

// listenPrivate listens on a socket that at no time is open to others. It
// takes the place of one that a killed resolver left.
func listenPrivate(path string) (net.Listener, error) {
	hidden := path + ".new"
	if err := os.Remove(hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale resolver socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: hidden})
	if err != nil {
		return nil, fmt.Errorf("listen on resolver socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, path)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("publish resolver socket: %w", err)
	}
	return l, nil
}

// put makes a job's zone what z says. Where it goes on listening at the same
// place its sockets are kept, and no query is lost.
func (s *server) put(job string, z Zone) error {
	c, err := z.compile()
	if err != nil {
		return err
	}
	place, err := placeOf(z)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.zones[job]; old != nil {
		if old.place == place {
			old.content.Store(c)
			return nil
		}
		delete(s.zones, job)
		old.close()
	}
	opened, err := openZone(place, c, s.host, s.log.WithField("job", job))
	if err != nil {
		return err
	}
	s.zones[job] = opened
	return nil
}

func (s *server) remove(job string) {
	s.mu.Lock()
	z := s.zones[job]
	delete(s.zones, job)
	s.mu.Unlock()
	if z != nil {
		z.close()
	}
}

func (s *server) list() map[string]Zone {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Zone, len(s.zones))
	for job, z := range s.zones {
		all[job] = z.content.Load().zone
	}
	return all
}

func (s *server) closeAll() {
	var wg sync.WaitGroup
	for job := range s.list() {
		wg.Go(func() { s.remove(job) })
	}
	wg.Wait()
}
