package builds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"
	"github.com/vishvananda/netlink"

	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/test/images"
)

// childEnv makes the test binary a berthd that waits to be killed.
const childEnv = "BERTH_TEST_BUILDS"

func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		if err := child(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	enginetest.Main(m)
}

// fixture is an engine with a service and a registry.
type fixture struct {
	testing.TB
	*enginetest.Engine
	service  *builds.Service
	registry *images.Registry
	cgroup   string // of all jobs
	count    atomic.Int32
}

// newFixture makes one whose builds may speak to further registries on this machine.
func newFixture(tb testing.TB, registries ...string) *fixture {
	tb.Helper()
	tb.Setenv("TMPDIR", os.TempDir()) // the service sets its own
	f := &fixture{TB: tb, Engine: enginetest.New(tb), cgroup: "/berth-test-" + identity.NewID()[:8]}
	tb.Cleanup(f.removeCgroup)
	registry, err := images.Serve(tb.Context())
	f.must(err)
	tb.Cleanup(func() { f.check(registry.Close()) })
	f.registry = registry
	f.serve(registries...)
	tb.Cleanup(func() {
		if f.service != nil {
			f.check(f.service.Close())
		}
	})
	return f
}

func (f *fixture) serve(registries ...string) {
	f.Helper()
	dir := f.TempDir()
	f.must(nameRegistries(dir, append(registries, f.registry.Address, f.registry.PrivateAddress)...))
	var err error
	f.service, err = builds.New(f.Context(), f.Engine.Engine, builds.Config{HostsDir: dir})
	f.must(err)
}

// nameRegistries is what an operator does who has registries on the node.
func nameRegistries(dir string, registries ...string) error {
	for _, r := range registries {
		if err := writeHosts(dir, r, fmt.Sprintf("server = %q\n", "http://"+r)); err != nil {
			return err
		}
	}
	return nil
}

func writeHosts(dir, registry, text string) error {
	of := filepath.Join(dir, registry)
	if err := os.MkdirAll(of, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(of, "hosts.toml"), []byte(text), 0o644)
}

type jobSpec = builds.Job

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) check(err error) {
	f.Helper()
	if err != nil {
		f.Error(err)
	}
}

func (f *fixture) busybox() string { return f.registry.Image(images.Busybox) }

// job is an endpoint and a client of it.
type job struct {
	*fixture
	key      string
	network  *network
	endpoint *builds.Endpoint
	address  string
	client   *client.Client
}

// job serves the builds of a job in a namespace.
func (f *fixture) job(key, ns string, options ...func(*builds.Job)) *job {
	f.Helper()
	n := f.count.Add(1)
	j := &job{fixture: f, key: key, network: f.newNetwork(fmt.Sprintf("net-%d", n))}
	spec := builds.Job{Key: key, Namespace: ns, Cgroup: f.cgroup, Network: j.network}
	for _, o := range options {
		o(&spec)
	}
	socket := filepath.Join(f.Config.Root, fmt.Sprintf("b%d.sock", n))
	l, err := net.Listen("unix", socket)
	f.must(err)
	j.endpoint, err = f.service.Serve(l, spec)
	f.must(err)
	f.Cleanup(j.close)
	j.address = "unix://" + socket
	j.client, err = client.New(f.Context(), j.address)
	f.must(err)
	f.Cleanup(func() { j.client.Close() })
	return j
}

func (j *job) close() {
	j.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(j.Context()), time.Minute)
	defer cancel()
	j.check(j.endpoint.Close(ctx))
	j.check(namespace.Remove(j.network.home()))
	if n := j.network.open.Load(); n != 0 {
		j.Errorf("%s left %d network namespaces", j.key, n)
	}
}

// network is a network of a job's own: nothing but a loopback.
type network struct {
	dir    string
	count  atomic.Int32
	open   atomic.Int32
	inside func() error // done in each new namespace
	own    []netip.Prefix
}

// newNetwork makes one with the namespace of the job itself, which goes when the job closes.
func (f *fixture) newNetwork(name string) *network {
	f.Helper()
	n := &network{dir: filepath.Join(f.Config.Root, name)}
	f.must(namespace.Create(n.home(), loopback))
	return n
}

func (n *network) home() string { return filepath.Join(n.dir, "home") }

func (n *network) Dialer() namespace.Dialer {
	return namespace.Dialer{Path: n.home(), Server: netip.MustParseAddrPort("127.0.0.1:53")}
}

func (n *network) Own() []netip.Prefix { return n.own }

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func (n *network) Nameservers() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.53")} }

func (n *network) Join(context.Context) (builds.Namespace, error) {
	path := filepath.Join(n.dir, fmt.Sprint(n.count.Add(1)))
	err := namespace.Create(path, func() error {
		if err := loopback(); err != nil || n.inside == nil {
			return err
		}
		return n.inside()
	})
	if err != nil {
		return nil, err
	}
	n.open.Add(1)
	return netns{path, n}, nil
}

type netns struct {
	path string
	of   *network
}

func (n netns) Path() string { return n.path }
func (n netns) Close() error {
	n.of.open.Add(-1)
	return namespace.Remove(n.path)
}

// request is a build.
type request struct {
	dockerfile string
	files      map[string]string
	attrs      map[string]string
	attach     []session.Attachable
	exports    []client.ExportEntry
	imports    []client.CacheOptionsEntry
	allow      []string
	sharedKey  string // names the directory; its files have one time
}

// build builds a Dockerfile, and returns what steps said.
func (j *job) build(r request) (string, error) {
	j.Helper()
	return j.buildIn(j.Context(), r)
}

func (j *job) buildIn(ctx context.Context, r request) (string, error) {
	j.Helper()
	dir := j.TempDir()
	j.must(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(r.dockerfile), 0o644))
	for name, text := range r.files {
		j.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	if r.sharedKey != "" {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		j.must(err)
		for _, name := range files {
			j.must(os.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0)))
		}
	}
	fs, err := fsutil.NewFS(dir)
	j.must(err)
	if r.attrs == nil {
		r.attrs = map[string]string{} // the client writes to it
	}
	opt := client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: r.attrs, Session: r.attach, Exports: r.exports,
		LocalMounts:         map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		CacheImports:        r.imports,
		AllowedEntitlements: r.allow,
		SharedKey:           r.sharedKey,
	}
	return j.solve(ctx, opt)
}

func (j *job) solve(ctx context.Context, opt client.SolveOpt) (string, error) {
	updates := make(chan *client.SolveStatus)
	var log strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates {
			for _, l := range u.Logs {
				log.Write(l.Data)
			}
		}
	}()
	_, err := j.client.Solve(ctx, nil, opt, updates)
	<-done
	return log.String(), err
}

// containers are those of RUN steps, and tasks those that run.
func (f *fixture) containers() []string { return f.list(false) }
func (f *fixture) tasks() []string      { return f.list(true) }

func (f *fixture) list(running bool) []string {
	f.Helper()
	c, err := containerd.New(f.Config.Address)
	f.must(err)
	defer c.Close()
	ctx := namespaces.WithNamespace(context.WithoutCancel(f.Context()), builds.ContainerNamespace(f.Config.Namespace))
	list, err := c.Containers(ctx)
	f.must(err)
	var ids []string
	for _, c := range list {
		if running {
			task, err := c.Task(ctx, nil)
			if err != nil {
				continue
			}
			if status, err := task.Status(ctx); err != nil || status.Status != containerd.Running {
				continue
			}
		}
		ids = append(ids, c.ID())
	}
	return ids
}

func (f *fixture) waitFor(what string, ok func() bool) {
	f.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			f.Fatal(errors.New("waited in vain for " + what))
		}
	}
}
