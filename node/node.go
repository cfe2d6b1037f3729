package node

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/cgroup"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/docker"
	"gitlab.com/berth-ci/berth/node/imagegc"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/runtime"
)

const (
	// shutdownTimeout is how long releases under way may take when berthd
	// ends. What is cut off is done again at the next start.
	shutdownTimeout = 15 * time.Second
	// callsTimeout is how long callers have to hear that berthd ends.
	callsTimeout = time.Second
	// tendInterval is how often it is looked for what should not be there.
	tendInterval = time.Minute
)

// errShutdown ends what waits when berthd ends.
var errShutdown = fmt.Errorf("berthd is being stopped or restarted: %w", errdefs.ErrUnavailable)

// daemon is a berthd with all it has open.
type daemon struct {
	config  *config.Config
	version string
	log     *logrus.Entry
	// closers are called in reverse.
	closers []func(context.Context) error

	cgroups  *cgroup.Tree
	listener net.Listener
	journal  *journal.Journal
	records  []journal.Record
	runtime  *runtime.Runtime
	client   *containerd.Client
	networks *network.Pool
	names    *resolverNames
	sockets  *relaySockets
	docker   *docker.Docker // nil where there is none
	engine   *buildkit.Engine
	builders *builders
	keeper   *cache.Keeper
	images   *imagegc.Keeper
	gpus     *gpu.Keeper
	jobs     *Jobs
}

// Run is berthd: it serves until ctx ends, and leaves the jobs running.
func Run(ctx context.Context, c *config.Config, version string, log *logrus.Entry) (err error) {
	d := &daemon{config: c, version: version, log: log}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		for _, closeOne := range slices.Backward(d.closers) {
			err = errors.Join(err, closeOne(ctx))
		}
	}()
	if err := d.openFiles(); err != nil {
		return err
	}
	if err := d.startRuntime(ctx); err != nil {
		return err
	}
	if err := d.openNetworks(ctx); err != nil {
		return err
	}
	if err := d.openCaches(ctx); err != nil {
		return err
	}
	if err := d.openDocker(ctx); err != nil {
		return err
	}
	return d.serve(ctx)
}

func (d *daemon) onClose(f func(context.Context) error) { d.closers = append(d.closers, f) }

// openFiles takes what only one berthd can have: its directories and cgroup,
// the socket, the journal. Calls on the socket wait until all is ready.
func (d *daemon) openFiles() error {
	for _, dir := range []string{d.config.Root, d.config.State} {
		unlock, err := lock(dir)
		if err != nil {
			return err
		}
		d.onClose(func(context.Context) error { return unlock() })
	}
	var err error
	if d.cgroups, err = cgroup.Host(); err != nil {
		return err
	}
	unlock, err := d.cgroups.Lock(d.config.Limits.Cgroup)
	if err != nil {
		return err
	}
	d.onClose(func(context.Context) error { return unlock() })
	gid, err := groupID(d.config.Group)
	if err != nil {
		return err
	}
	if d.listener, err = listen(d.config.Socket, gid); err != nil {
		return err
	}
	d.onClose(func(context.Context) error { return closeSocket(d.listener, d.config.Socket) })
	d.runtime = runtime.New(d.config, gid, d.log)

	var moved string
	if d.journal, moved, err = journal.Open(journalFile(d.config)); err != nil {
		return err
	}
	d.onClose(func(context.Context) error { return d.journal.Close() })
	if moved != "" {
		d.log.Errorf("the journal was damaged; it is kept as %s, and every job that was on the node is ended and cleaned up", moved)
	}
	d.records, err = d.journal.Records()
	return err
}

func (d *daemon) startRuntime(ctx context.Context) (err error) {
	if err := d.runtime.Start(ctx); err != nil {
		return err
	}
	d.onClose(d.endUnlessUsed(d.runtime))
	at := d.runtime.Containerd()
	if d.client, err = containerd.New(at.Address, containerd.WithDefaultNamespace(at.Namespace)); err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	d.onClose(func(context.Context) error { return d.client.Close() })
	return nil
}

func (d *daemon) openNetworks(ctx context.Context) (err error) {
	n := d.config.Network
	c := network.Config{
		Instance: n.Instance, Subnet: n.Subnet, Uplinks: n.Uplinks, Pool: n.Pool, MTU: n.MTU,
		Dir: netnsDir(d.config), Egress: map[string]network.Egress{},
	}
	for name, p := range d.config.Profiles {
		c.Egress[name] = network.Egress(p.Egress)
	}
	if d.networks, err = network.Open(ctx, c, d.log); err != nil {
		return err
	}
	d.onClose(d.networks.Close)
	if d.names, err = startResolver(ctx, d.config, d.version, d.log); err != nil {
		return err
	}
	d.onClose(d.endUnlessUsed(d.names.supervisor))
	if d.sockets, err = startRelay(ctx, d.config, d.version, d.log); err != nil {
		return err
	}
	d.onClose(d.endUnlessUsed(d.sockets.supervisor))
	return nil
}

// openDocker has the docker daemon started. Jobs do not depend on it.
func (d *daemon) openDocker(ctx context.Context) (err error) {
	if !d.config.Docker.Enabled {
		return nil
	}
	d.docker, err = docker.Open(ctx, docker.Settings{
		Config: d.config, Containerd: d.runtime.Containerd(), Client: d.client, Env: d.runtime.Env(),
		Networks: d.networks, Names: d.names.PutContainers, Relay: d.sockets.Keeper, Images: d.images,
		Builds: d.builders.forDocker, Log: d.log,
	})
	if err != nil {
		return fmt.Errorf("open docker: %w", err)
	}
	d.builders.unnamed = d.docker.Unnamed
	d.builders.docker = d.config.Docker.Networks
	d.onClose(func(ctx context.Context) error { return d.docker.Close(ctx, d.used()) })
	return nil
}

// used tells whether there are jobs.
func (d *daemon) used() bool {
	if d.jobs != nil {
		return len(d.jobs.List()) > 0
	}
	return len(d.records) > 0 // all there is to go by if the start failed
}

func (d *daemon) openCaches(ctx context.Context) (err error) {
	at := d.runtime.Containerd()
	d.engine, err = buildkit.Open(ctx, buildkit.Config{Root: cachesDir(d.config.Root), Address: at.Address, Namespace: at.Namespace})
	if err != nil {
		return fmt.Errorf("open the node's caches: %w", err)
	}
	d.onClose(func(context.Context) error { return d.engine.Close() })
	d.openImages()
	service, err := builds.New(ctx, d.engine, builds.Config{
		HostsDir: d.config.Registries.HostsDir, Deny: []netip.Prefix{d.config.Network.Subnet, d.config.Network.Uplinks},
	})
	if err != nil {
		return err
	}
	d.builders = newBuilders(service, d.networks, d.sockets, d.client.ImageService(), d.images, d.log)
	d.onClose(d.builders.close)
	return nil
}

// program is one that outlives berthd while there are jobs.
type program interface {
	Leave()
	Stop(context.Context) error
}

func (d *daemon) endUnlessUsed(p program) func(context.Context) error {
	return func(ctx context.Context) error {
		if d.used() {
			p.Leave()
			return nil
		}
		return p.Stop(ctx)
	}
}

// serve takes over the jobs of an earlier berthd and answers calls.
func (d *daemon) serve(ctx context.Context) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	alive, dead := survivors(d.records, boot)
	if err := d.networks.Adopt(ctx, networksOf(alive)); err != nil {
		return err
	}
	store, err := openDirs(d.config.Root)
	if err != nil {
		return err
	}
	if err := d.openGPUs(boot); err != nil {
		return err
	}
	caches := cache.New(d.engine, d.log)
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	parts := Parts{
		Journal: d.journal, Dirs: store, Cgroups: d.cgroups, Containers: runtimeContainers{d.client},
		Networks: d.networks, Names: d.names, Sockets: d.sockets,
		Caches: caches, Builds: d.builders, GPUs: d.gpus,
	}
	if d.docker != nil {
		parts.Docker = d.docker
	}
	d.jobs = newJobs(life, Settings{
		Profiles:     d.config.Profiles,
		Containerd:   d.runtime.Containerd(),
		Cgroup:       d.config.Limits.Cgroup,
		Registries:   d.config.Registries.HostsDir,
		DockerConfig: d.config.Registries.DockerConfig,
		Boot:         boot,
	}, d.log, parts)
	d.onClose(func(ctx context.Context) error { end(errShutdown); return d.jobs.wait(ctx) })
	if err := retakeCaches(ctx, caches, d.jobs, alive, dead); err != nil {
		return err
	}
	retakeGPUs(d.gpus, d.log, alive, dead)
	store.retake(d.records...)
	d.jobs.attending.Go(func() { d.gpus.Run(life) })
	d.jobs.Replay(ctx, alive, dead)
	if err := d.names.keep(ctx, d.jobs.List()); err != nil {
		d.log.WithError(err).Warn("cannot remove the names of former jobs")
	}
	// What is left over is known before it could be in a new job's way.
	if err := d.jobs.Sweep(ctx); err != nil {
		return err
	}
	d.jobs.attending.Go(func() { d.tend(life) })
	d.keeper = caches.Keeper(policyOf(d.config.Cache), d.journal.Projects, store.caches)
	d.jobs.attending.Go(func() { d.collect(life) })
	d.jobs.attending.Go(func() { d.measure(life, store.caches) })
	go store.empty(life, d.log)

	h := &handler{jobs: d.jobs, keeper: d.keeper, images: d.images, gpus: d.gpus, log: d.log, about: api.Version{
		Berthd: d.version, Containerd: d.runtime.Version(), Root: d.config.Root,
	}}
	complaints := d.log.WriterLevel(logrus.WarnLevel)
	defer func() { _ = complaints.Close() }()
	server := &http.Server{
		Handler:           h.routes(),
		BaseContext:       func(net.Listener) context.Context { return life },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          stdlog.New(complaints, "", 0),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(d.listener) }()
	d.log.WithFields(logrus.Fields{"socket": d.config.Socket, "jobs": len(alive)}).Info("berthd serves")
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	d.log.Info("berthd stops; jobs go on")
	end(errShutdown) // and with it all calls
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), callsTimeout)
	defer cancel()
	if server.Shutdown(closing) != nil {
		return server.Close()
	}
	return nil
}

// tend puts right what went wrong unseen, until ctx ends.
func (d *daemon) tend(ctx context.Context) {
	tick := time.NewTicker(tendInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := d.jobs.Sweep(ctx); err != nil && ctx.Err() == nil {
			d.log.WithError(err).Warn("cannot look for leftovers")
		}
		// Docker, when it starts, forbids what it does not know of.
		if err := d.networks.AllowForwarding(); err != nil {
			d.log.WithError(err).Warn("cannot see to it that jobs reach the outside")
		}
	}
}
