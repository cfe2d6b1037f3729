package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/resolver"
	"gitlab.com/berth-ci/berth/node/supervise"
)

// resolverPatience is how long a call waits for a resolver that is being
// started again.
const resolverPatience = 10 * time.Second

// resolverNames are the Names of a resolver process. It outlives berthd, but
// remembers nothing: when it was started again, it is told all.
type resolverNames struct {
	client     *resolver.Client
	supervisor *supervise.Supervisor

	mu    sync.Mutex
	pid   int // of the resolver that knows the zones
	zones map[string]resolver.Zone
	// containers are names of a job's docker containers.
	containers map[string]map[string][]netip.Addr
}

// resolverSocket is where berthd controls its resolver.
func resolverSocket(c *config.Config) string { return filepath.Join(c.State, "resolver.sock") }

// startResolver adopts or starts the resolver, which is this program under
// another name. One of another build is replaced.
func startResolver(ctx context.Context, c *config.Config, version string, log *logrus.Entry) (*resolverNames, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find berthd's own program: %w", err)
	}
	n := &resolverNames{client: resolver.NewClient(resolverSocket(c)), zones: map[string]resolver.Zone{}, containers: map[string]map[string][]netip.Addr{}}
	n.supervisor = supervise.New(supervise.Program{
		Name:    "resolver",
		Path:    program,
		Args:    []string{"resolver", "--socket", resolverSocket(c), "--log-level", c.LogLevel},
		Env:     os.Environ(),
		Dir:     "/",
		Ready:   n.teach,
		PIDFile: filepath.Join(c.State, "resolver.pid"),
		LogFile: filepath.Join(c.Root, "resolver.log"),
	}, log)
	if err := n.supervisor.Start(ctx); err != nil {
		return nil, err
	}
	build, err := buildID(version)
	if err != nil {
		return nil, err
	}
	if v, err := n.client.Version(ctx); err == nil && v.Version == build {
		return n, nil
	}
	log.Info("replacing the resolver of another berthd")
	if err := n.supervisor.Stop(ctx); err != nil {
		return nil, err
	}
	if err := n.supervisor.Start(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// ServeResolver is the resolver's process.
func ServeResolver(ctx context.Context, socket, version string, log *logrus.Entry) error {
	build, err := buildID(version)
	if err != nil {
		return err
	}
	return resolver.Serve(ctx, resolver.Options{Socket: socket, Version: build, Log: log})
}

// buildID tells this program from another of the same version.
func buildID(version string) (string, error) {
	info, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("identify berthd's own program: %w", err)
	}
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%s %d:%d", version, s.Dev, s.Ino), nil
}

// teach tells a new resolver what the last one knew. It is asked whenever one
// was started, until it succeeds.
func (n *resolverNames) teach(ctx context.Context) error {
	v, err := n.client.Version(ctx)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if v.PID == n.pid {
		return nil
	}
	for job, zone := range n.zones {
		// The job may be gone by now.
		if err := n.client.Put(ctx, job, n.withContainers(job, zone)); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	n.pid = v.PID
	return nil
}

// Put makes a job's names known.
func (n *resolverNames) Put(ctx context.Context, job string, z resolver.Zone) error {
	n.mu.Lock()
	n.zones[job] = z
	z = n.withContainers(job, z)
	n.mu.Unlock()
	return persist(ctx, func() error { return n.client.Put(ctx, job, z) })
}

// Remove forgets a job's names and frees its namespace.
func (n *resolverNames) Remove(ctx context.Context, job string) error {
	n.mu.Lock()
	delete(n.zones, job)
	delete(n.containers, job)
	n.mu.Unlock()
	return persist(ctx, func() error { return n.client.Delete(ctx, job) })
}

// PutContainers makes the names of a job's docker containers known.
func (n *resolverNames) PutContainers(ctx context.Context, job string, names map[string][]netip.Addr) error {
	n.mu.Lock()
	z, ok := n.zones[job]
	n.containers[job] = names
	z = n.withContainers(job, z)
	n.mu.Unlock()
	if !ok {
		return nil // the job ends
	}
	return persist(ctx, func() error { return n.client.Put(ctx, job, z) })
}

// withContainers adds the names of a job's docker containers to a zone, which
// has the say; n.mu is held.
func (n *resolverNames) withContainers(job string, z resolver.Zone) resolver.Zone {
	all := maps.Clone(n.containers[job])
	if len(all) == 0 {
		return z
	}
	maps.Copy(all, z.Names)
	z.Names = all
	return z
}

// keep removes all zones but those of the jobs that there are.
func (n *resolverNames) keep(ctx context.Context, jobs []api.Job) error {
	known := map[string]bool{}
	for _, j := range jobs {
		known[j.Key] = true
	}
	zones, err := n.client.List(ctx)
	for job := range zones {
		if !known[job] {
			err = errors.Join(err, n.client.Delete(ctx, job))
		}
	}
	return err
}

// persist calls until the resolver is there, for a while.
func persist(ctx context.Context, call func() error) error {
	policy := backoff.NewExponentialBackOff()
	policy.InitialInterval = 10 * time.Millisecond
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := call()
		if err != nil && !errdefs.IsUnavailable(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(resolverPatience))
	return err
}

// dockerAlias is how jobs call the host of their docker.
const dockerAlias = "docker"

// zoneOf gives a job the names of its own containers, and the extra hosts of
// its profile. A name of several services has the addresses of all of them.
func zoneOf(a api.Admission) resolver.Zone {
	z := resolver.Zone{
		Netns:     a.Network.Netns,
		Addr:      a.Network.Address,
		Names:     map[string][]netip.Addr{},
		Upstreams: a.Grant.Profile.DNS,
	}
	add := func(name string, addr netip.Addr) {
		if addr.Is4() { // jobs have no IPv6
			z.Names[name] = append(z.Names[name], addr)
		}
	}
	add("build", a.Network.Address)
	for i, s := range a.Grant.Services {
		for _, alias := range s.Aliases {
			add(alias, a.Network.Services[i].Address)
		}
	}
	if _, taken := z.Names[dockerAlias]; a.Docker != nil && !taken {
		add(dockerAlias, a.Network.Address)
	}
	for _, host := range a.Grant.Profile.ExtraHosts {
		name, addr, _ := strings.Cut(host, ":")
		// It was checked with the configuration.
		if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
			add(name, ip)
		}
	}
	return z
}
