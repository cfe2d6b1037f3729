package builds

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/util/resolver/limited"
	bolt "go.etcd.io/bbolt"

	"gitlab.com/berth-ci/berth/buildkit"
)

// Config is what builds of all jobs have.
type Config struct {
	// HostsDir holds containerd's hosts.toml files, a directory for each registry. Those named there are reached from the
	// node, and may be on it, or on a link of it.
	HostsDir string
	// Deny are networks that these may not send on to: those of jobs, which berthd reaches.
	Deny []netip.Prefix
}

// Service serves builds on an engine.
type Service struct {
	engine  *buildkit.Engine
	dir     string
	client  *containerd.Client // for the containers of RUN steps
	writer  *imageexporter.ImageWriter
	hosts   docker.RegistryHosts
	history *bolt.DB
	results results
	claims  claims
	layers  layers
	naming  sync.Mutex // of images

	mu   sync.Mutex
	jobs map[string]bool
}

// ContainerNamespace is containerd's for RUN steps. Docker does not know it, and nothing else is in it.
func ContainerNamespace(engine string) string { return engine + "-builds" }

// New removes what builds of a berthd left that was killed, and makes a service. It comes before the engine takes back
// what jobs hold: a step that lives on would write to a cache that its lock no longer guards.
//
// BuildKit mounts in $TMPDIR and forgets it when it is killed, so New sets it to a directory of its own, for the process.
func New(ctx context.Context, engine *buildkit.Engine, c Config) (_ *Service, err error) {
	config := engine.Config()
	s := &Service{engine: engine, dir: filepath.Join(config.Root, "builds"), jobs: map[string]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.client, err = containerd.New(config.Address, containerd.WithDefaultNamespace(ContainerNamespace(config.Namespace)),
		containerd.WithTimeout(time.Minute))
	if err != nil {
		return nil, fmt.Errorf("connect builds to containerd: %w", err)
	}
	if err := s.sweep(ctx); err != nil {
		return nil, err
	}
	for _, dir := range []string{s.jobDir(""), s.tmpDir(), s.resultDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make directory of builds: %w", err)
		}
	}
	if err := os.Setenv("TMPDIR", s.tmpDir()); err != nil {
		return nil, fmt.Errorf("set directory for temporary mounts: %w", err)
	}
	// One job could have all connections to what another calls by the same name; each has a limit of its own.
	limited.SetMaxConcurrency(math.MaxInt32)
	w := engine.Unguarded()
	s.writer, err = imageexporter.NewImageWriter(imageexporter.WriterOpt{
		Snapshotter: w.Snapshotter, ContentStore: w.ContentStore(), Applier: w.Applier, Differ: w.Differ,
	})
	if err != nil {
		return nil, fmt.Errorf("make image writer: %w", err)
	}
	s.history, err = bolt.Open(filepath.Join(s.dir, "history.db"), 0o600, &bolt.Options{NoSync: true, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open build history: %w", err)
	}
	s.hosts = registryHosts(c)
	s.results.open = s.openResults
	return s, nil
}

func (s *Service) jobDir(id string) string { return filepath.Join(s.dir, "jobs", id) }
func (s *Service) tmpDir() string          { return filepath.Join(s.dir, "tmp") }
func (s *Service) resultDir() string       { return filepath.Join(s.dir, "results") }

// Close ends the service, after its endpoints.
func (s *Service) Close() error {
	s.mu.Lock()
	n := len(s.jobs)
	s.mu.Unlock()
	if n > 0 {
		return fmt.Errorf("%d jobs still build: %w", n, errdefs.ErrFailedPrecondition)
	}
	var errs []error
	if s.history != nil {
		errs = append(errs, s.history.Close())
	}
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	return errors.Join(errs...)
}

// admit notes that a job has an endpoint; one is enough.
func (s *Service) admit(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[key] {
		return fmt.Errorf("builds of %s are served already: %w", key, errdefs.ErrAlreadyExists)
	}
	s.jobs[key] = true
	return nil
}

func (s *Service) dismiss(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, key)
}
