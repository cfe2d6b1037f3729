// Package docker gives each job docker: an endpoint of its own, at a unix
// socket in its containers and at tcp://docker:2375 on its network, of the one
// docker daemon of the node. What a job may do with it is package proxy's
// affair; that nothing is left of it is this one's.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/docker/binds"
	"gitlab.com/berth-ci/berth/node/docker/daemon"
	"gitlab.com/berth-ci/berth/node/docker/ledger"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/docker/proxy"
	"gitlab.com/berth-ci/berth/node/docker/registry"
	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/relay"
)

// Settings are what the node has.
type Settings struct {
	Config     *config.Config
	Containerd api.Containerd
	Client     *containerd.Client
	// Env is what a managed dockerd gets.
	Env      []string
	Networks proxy.Networks
	// Names makes the names of a job's containers known to the job.
	Names func(ctx context.Context, job string, names map[string][]netip.Addr) error
	// Relay keeps what must not end with berthd.
	Relay *relay.Keeper
	// Images takes note of what jobs use.
	Images proxy.Images
	// Builds answers the builds of a job; nil where there are none.
	Builds func(Job) proxy.Builds
	Log    *logrus.Entry
}

// Job is one that gets docker.
type Job struct {
	Key      string
	Identity executor.Identity
	Profile  executor.Profile
	Cgroup   string
	Network  network.Network
	// Container is the build container's id.
	Container string
	// Dir is the directory of the job's endpoint.
	Dir string
	// GPUs are the UUIDs of those that the job has.
	GPUs []string
	// TLS has it listen with certificates, too, as docker:dind does.
	TLS bool
}

// Docker is the docker of a node.
type Docker struct {
	settings Settings
	daemon   *daemon.Daemon
	node     *proxy.Node
	log      *logrus.Entry
	// life ends with berthd.
	life context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu        sync.Mutex
	endpoints map[string]*endpoint
	// suspects have something on the daemon, though nothing is on record.
	suspects map[string]bool
}

// Open makes the docker of a node, and begins to start the daemon.
func Open(ctx context.Context, s Settings) (_ *Docker, err error) {
	state := filepath.Join(s.Config.State, "docker")
	d := &Docker{settings: s, log: s.Log, endpoints: map[string]*endpoint{}, suspects: map[string]bool{}}
	d.life, d.end = context.WithCancel(context.WithoutCancel(ctx))
	stage, err := binds.Open(filepath.Join(state, "binds"))
	if err != nil {
		return nil, err
	}
	record, err := ledger.Open(filepath.Join(state, "objects.db"))
	if err != nil {
		return nil, errors.Join(err, stage.Close())
	}
	d.daemon = daemon.New(s.Config, s.Containerd, s.Env, s.Log)
	d.node = &proxy.Node{
		Engine: d.daemon.Engine, Client: s.Client, Ledger: record, Binds: stage, Networks: s.Networks,
		Registry: &registry.Registry{Client: s.Client, Snapshotter: s.Containerd.Snapshotter, HostsDir: s.Config.Registries.HostsDir},
		Subnets:  s.Config.Docker.Networks, Reserved: []netip.Prefix{s.Config.Network.Subnet, s.Config.Network.Uplinks, s.Config.Docker.Networks},
		Names: s.Names, Streams: s.Relay, Images: s.Images, Log: s.Log,
	}
	d.daemon.Start(ctx)
	d.done.Go(d.watch)
	return d, nil
}

// Close ends all endpoints; what connects to those of jobs waits for the next
// berthd. The daemon runs on if it is in use.
func (d *Docker) Close(ctx context.Context, used bool) error {
	d.mu.Lock()
	endpoints := d.endpoints
	d.endpoints = map[string]*endpoint{}
	d.mu.Unlock()
	var closing sync.WaitGroup
	for _, e := range endpoints {
		closing.Go(func() { e.leave(ctx) })
	}
	closing.Wait()
	d.end()
	d.done.Wait()
	var err error
	if used {
		d.daemon.Leave()
	} else {
		err = errors.Join(d.daemon.Stop(ctx), d.node.Binds.Close())
	}
	return errors.Join(err, d.node.Ledger.Close())
}

// Attach gives a job its endpoint. The daemon need not serve yet.
func (d *Docker) Attach(job Job) error {
	d.mu.Lock()
	old := d.endpoints[job.Key]
	d.mu.Unlock()
	if old != nil {
		return nil
	}
	var builds proxy.Builds
	if d.settings.Builds != nil {
		builds = d.settings.Builds(job)
	}
	view, err := proxy.New(d.node, proxy.Job{
		Key:       job.Key,
		Scope:     names.Scope{Project: job.Identity.ProjectKey(), Protected: job.Identity.Protected},
		Cgroup:    job.Cgroup,
		Network:   job.Network,
		Container: job.Container,
		Profile:   job.Profile,
		GPUs:      job.GPUs,
	}, builds)
	if err != nil {
		return fmt.Errorf("give the job docker: %w", err)
	}
	view.HoldSubnets()
	e, err := d.open(job, view)
	if err != nil {
		return fmt.Errorf("give the job docker: %w", err)
	}
	d.mu.Lock()
	d.endpoints[job.Key] = e
	d.mu.Unlock()
	return nil
}

// Unnamed notes an image without a name that a job has built.
func (d *Docker) Unnamed(job, id string) error {
	e := d.endpoint(job)
	if e == nil {
		return fmt.Errorf("job %s has no docker: %w", job, errdefs.ErrNotFound)
	}
	return e.view.Unnamed(id)
}

func (d *Docker) endpoint(job string) *endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endpoints[job]
}
