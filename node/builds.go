package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Builds answers BuildKit's API for jobs.
type Builds interface {
	// Serve makes the job's socket, or makes it again for a job of an earlier
	// berthd.
	Serve(r journal.Record) error
	// End ends all builds of a job; it is idempotent.
	End(ctx context.Context, job string) error
}

// endpoints gives jobs network namespaces beside those of their services.
type endpoints interface {
	Join(ctx context.Context, n network.Network, name string, nth int) (network.Endpoint, error)
	Leave(ctx context.Context, n network.Network, nth int) error
}

// listeners are kept while berthd is away.
type listeners interface {
	// Listen gives the listener that a job has by a name, or makes it.
	Listen(ctx context.Context, job, name string, make func() (net.Listener, error)) (net.Listener, error)
}

// builders are the BuildKits of jobs. Most jobs build nothing, so each is
// made when the first client comes.
type builders struct {
	service  *builds.Service
	networks endpoints
	sockets  listeners
	images   images.Store
	uses     imageUses
	// docker is where networks that jobs make by docker are cut from.
	docker netip.Prefix
	// unnamed notes an image without a name; nil where there is no docker.
	unnamed func(job, id string) error
	log     *logrus.Entry

	mu   sync.Mutex
	jobs map[string]*builder
}

func newBuilders(s *builds.Service, n endpoints, l listeners, i images.Store, u imageUses, log *logrus.Entry) *builders {
	return &builders{service: s, networks: n, sockets: l, images: i, uses: u, log: log, jobs: map[string]*builder{}}
}

// builder is one job's.
type builder struct {
	job      builds.Job
	listener net.Listener
	accepts  sync.WaitGroup

	mu       sync.Mutex
	endpoint *builds.Endpoint
	ended    bool
}

const buildSocket = "buildkitd.sock"

// buildsOf says where a job finds its BuildKit.
func buildsOf(dir string) api.Builds {
	return api.Builds{Dir: filepath.Join(dir, "run"), Socket: buildSocket}
}

func (b *builders) Serve(r journal.Record) error {
	key, a := r.Job.Key, r.Admission
	if a.Builds.Dir == "" {
		return nil
	}
	l, err := b.sockets.Listen(context.Background(), key, buildSocket, func() (net.Listener, error) {
		return listenForBuilds(filepath.Join(a.Builds.Dir, a.Builds.Socket))
	})
	if err != nil {
		return fmt.Errorf("serve builds: %w", err)
	}
	own := []netip.Prefix{r.Network.Subnet}
	if a.Docker != nil {
		own = append(own, b.docker)
	}
	j := &builder{listener: l, job: builds.Job{
		Key: key, Name: key, Namespace: cache.Namespace(r.Job.Identity), Cgroup: a.Cgroup + "/builds",
		Network:      &buildNetwork{endpoints: b.networks, network: r.Network, nameserver: a.Network.Address, own: own, services: len(a.Network.Services)},
		Entitlements: a.Grant.Profile.Builds.Entitlements,
	}}
	j.job.Image, j.job.Find = b.imageNames(r)
	j.job.Labels = func(name string) map[string]string {
		return lastuse.Put(map[string]string{names.MakerLabel: key}, name, time.Now())
	}
	b.mu.Lock()
	b.jobs[key] = j
	b.mu.Unlock()
	j.accepts.Go(func() { b.accept(j) })
	return nil
}

// listenForBuilds makes a job's socket.
func listenForBuilds(socket string) (net.Listener, error) {
	uid, gid := 0, 0
	if info, err := os.Lstat(socket); err == nil { // one that was lost; it belongs to the job's user
		st := info.Sys().(*syscall.Stat_t)
		uid, gid = int(st.Uid), int(st.Gid)
	}
	l, err := listen(socket, gid)
	if err != nil {
		return nil, err
	}
	if err := os.Lchown(socket, uid, gid); err != nil {
		return nil, errors.Join(err, closeSocket(l, socket))
	}
	return l, nil
}

// accept hands connections to the job's BuildKit until the listener closes.
func (b *builders) accept(j *builder) {
	for {
		conn, err := j.listener.Accept()
		if err != nil {
			return
		}
		e, err := b.endpoint(j)
		if err != nil {
			b.log.WithError(err).WithField("job", j.job.Key).Error("cannot serve builds of a job")
			conn.Close()
			continue
		}
		e.ServeConn(conn)
	}
}

func (b *builders) endpoint(j *builder) (*builds.Endpoint, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return nil, fmt.Errorf("the job has ended: %w", errdefs.ErrAborted)
	}
	if j.endpoint == nil {
		e, err := b.service.Serve(nil, j.job)
		if err != nil {
			return nil, err
		}
		j.endpoint = e
	}
	return j.endpoint, nil
}

func (b *builders) End(ctx context.Context, job string) error {
	b.mu.Lock()
	j := b.jobs[job]
	b.mu.Unlock()
	if j == nil {
		return nil
	}
	err := j.listener.Close() // the job's directory goes with the socket
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	j.mu.Lock()
	j.ended = true
	e := j.endpoint
	j.mu.Unlock()
	if e != nil {
		err = errors.Join(err, e.Close(ctx))
	}
	if err != nil {
		return fmt.Errorf("end builds of job %s: %w", job, err)
	}
	j.accepts.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.jobs, job)
	return nil
}

// close ends all builds when berthd ends: their clients live in jobs and see
// their connections end. New ones wait for the next berthd.
func (b *builders) close(ctx context.Context) error {
	b.mu.Lock()
	var keys []string
	for key := range b.jobs {
		keys = append(keys, key)
	}
	b.mu.Unlock()
	var errs []error
	for _, key := range keys {
		errs = append(errs, b.End(ctx, key))
	}
	return errors.Join(append(errs, b.service.Close())...)
}

// buildNetwork is a job's network for its builds. Endpoints are counted from
// the last down, since services have the first.
type buildNetwork struct {
	endpoints  endpoints
	network    network.Network
	nameserver netip.Addr
	own        []netip.Prefix
	services   int

	mu    sync.Mutex
	taken map[int]bool
}

func (n *buildNetwork) Nameservers() []netip.Addr { return []netip.Addr{n.nameserver} }

// Dialer connects from the job's namespace, as its docker does.
func (n *buildNetwork) Dialer() namespace.Dialer {
	return namespace.Dialer{Path: n.network.Netns, Server: netip.AddrPortFrom(n.nameserver, 53)}
}

// Own are the job's network, and those that it makes with docker.
func (n *buildNetwork) Own() []netip.Prefix { return n.own }

func (n *buildNetwork) Join(ctx context.Context) (builds.Namespace, error) {
	nth, err := n.take()
	if err != nil {
		return nil, err
	}
	e, err := n.endpoints.Join(ctx, n.network, "build step", nth)
	if err != nil {
		n.put(nth)
		return nil, err
	}
	return &buildNamespace{n, nth, e.Netns}, nil
}

func (n *buildNetwork) take() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for nth := network.Endpoints - 1; nth >= n.services; nth-- {
		if !n.taken[nth] {
			if n.taken == nil {
				n.taken = map[int]bool{}
			}
			n.taken[nth] = true
			return nth, nil
		}
	}
	return 0, fmt.Errorf("the job's network has no room for another build step; %d run: %w", len(n.taken), errdefs.ErrResourceExhausted)
}

func (n *buildNetwork) put(nth int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.taken, nth)
}

// buildNamespace is one step's.
type buildNamespace struct {
	of   *buildNetwork
	nth  int
	path string
}

func (n *buildNamespace) Path() string { return n.path }

func (n *buildNamespace) Close() error {
	// With the network, should this fail: the number stays taken.
	if err := n.of.endpoints.Leave(context.Background(), n.of.network, n.nth); err != nil {
		return err
	}
	n.of.put(n.nth)
	return nil
}
