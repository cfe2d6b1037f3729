package buildkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/gofrs/flock"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ctdworker "github.com/moby/buildkit/worker/containerd"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/gc"
	"gitlab.com/berth-ci/berth/buildkit/generation"
)

// Snapshotter is containerd's snapshotter that holds all caches; their overlays are mounted by its layout.
const Snapshotter = "overlayfs"

// Config says where an engine lives.
type Config struct {
	Root      string // a directory of its own; it belongs to Namespace, and one without the other is lost
	Address   string // containerd's socket
	Namespace string // of containerd

	// Network is what RUN steps of builds get; nil for none. They never get the node's.
	Network network.Provider
}

// Engine is BuildKit in this process. There may be one in a process: BuildKit's table of shared mounts is global.
type Engine struct {
	config      Config
	worker      *base.Worker
	sessions    *session.Manager
	mounts      *cachemount.Table
	generations *generation.Store
	lock        *flock.Flock
}

// Open starts an engine. It serves nothing until Retake.
func Open(ctx context.Context, c Config) (_ *Engine, err error) {
	clones := filepath.Join(c.Root, "clones")
	if err := os.MkdirAll(clones, 0o711); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	e := &Engine{config: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.lock, err = lockRoot(c.Root); err != nil {
		return nil, err
	}
	if err := checkVisible(ctx, c.Address, clones); err != nil {
		return nil, err
	}
	if e.sessions, err = session.NewManager(); err != nil {
		return nil, fmt.Errorf("make session manager: %w", err)
	}
	if e.worker, err = newWorker(ctx, c); err != nil {
		return nil, err
	}
	e.mounts = cachemount.NewTable(cachemount.Config{
		Cache: e.worker.CacheMgr, Sessions: e.sessions, Snapshots: e.worker.Snapshotter,
	})
	e.generations, err = generation.Open(ctx, generation.Config{
		Cache: e.worker.CacheMgr, Snapshots: e.worker.Snapshotter, Dir: clones,
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// lockRoot keeps other engines out of a root. BuildKit's own database lock would wait without end.
func lockRoot(root string) (*flock.Flock, error) {
	l := flock.New(filepath.Join(root, "engine.lock"), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock cache directory: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("cache directory %s is in use by another engine: %w", root, errdefs.ErrAlreadyExists)
	}
	return l, nil
}

func newWorker(ctx context.Context, c Config) (*base.Worker, error) {
	opt, err := ctdworker.NewWorkerOpt(ctdworker.WorkerOptions{
		Root:            c.Root,
		Address:         c.Address,
		SnapshotterName: Snapshotter,
		Namespace:       c.Namespace,
		NetworkOpt:      netproviders.Opt{Mode: "host"},
	}, containerd.WithTimeout(time.Minute))
	if err != nil {
		return nil, fmt.Errorf("connect BuildKit to containerd: %w", err)
	}
	// The executor has the same map.
	delete(opt.NetworkProviders, pb.NetMode_HOST)
	opt.NetworkProviders[pb.NetMode_UNSET] = network.NewNoneProvider()
	if c.Network != nil {
		opt.NetworkProviders[pb.NetMode_UNSET] = c.Network
	}
	opt.RegistryHosts = resolver.NewRegistryConfig(nil)
	opt.BuildkitVersion = client.BuildkitVersion{Package: version.Package, Version: version.Version, Revision: version.Revision}

	opt.LeaseManager = leaseutil.WithNamespace(labelled{opt.LeaseManager, c.Root}, c.Namespace)

	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open BuildKit's caches: %w", err), opt.MetadataStore.Close())
	}
	if err := sweepLeases(ctx, opt.LeaseManager, c.Root, opt.MetadataStore); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Config is what the engine was opened with.
func (e *Engine) Config() Config { return e.config }

// Unguarded is the worker itself. Package builds makes one for each job of its parts; nothing else may have it.
func (e *Engine) Unguarded() *base.Worker { return e.worker }

// Worker is what BuildKit's API may use.
func (e *Engine) Worker() worker.Worker { return guarded{e.worker} }

// Sessions are those of the clients of BuildKit's API.
func (e *Engine) Sessions() *session.Manager { return e.sessions }

// Mounts are the caches that jobs and builds share.
func (e *Engine) Mounts() *cachemount.Table { return e.mounts }

// Generations are the caches of which each job gets a copy.
func (e *Engine) Generations() *generation.Store { return e.generations }

// Collector makes room; project tells whose a key is.
func (e *Engine) Collector(project func(key string) string) *gc.Collector {
	return &gc.Collector{
		Mounts: e.mounts, Generations: e.generations, Cache: e.worker.CacheMgr, Sweep: e.worker.GarbageCollect,
		Disk: e.generations.Layers(), Project: project,
	}
}

// Held is what jobs hold, by their journals.
type Held struct {
	Mounts []cachemount.Record
	Clones []generation.Record
}

// Taken is what Retake took back.
type Taken struct {
	Mounts []*cachemount.Mount
	Clones []*generation.Clone
	Lost   Held // what is not there any more
}

// Retake takes back what jobs that live on hold, and drops what the others left. It comes before anything is served,
// API and GC included: nothing else keeps a job's caches from others after a restart.
func (e *Engine) Retake(ctx context.Context, held Held) (t Taken, err error) {
	if t.Mounts, t.Lost.Mounts, err = e.mounts.Retake(ctx, held.Mounts); err != nil {
		return Taken{}, err
	}
	if t.Clones, t.Lost.Clones, err = e.generations.Retake(ctx, held.Clones); err != nil {
		return Taken{}, err
	}
	return t, nil
}

// Close ends the engine; what jobs hold stays as it is.
func (e *Engine) Close() error {
	var errs []error
	if e.generations != nil {
		e.generations.Close()
	}
	if e.worker != nil {
		errs = append(errs, e.worker.Close())
		forgetShared()
	}
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	return errors.Join(errs...)
}

// forgetShared empties BuildKit's table of shared mounts, which would outlive the engine in a process.
func forgetShared() {
	mu := mounts.CacheMountsLocker()
	mu.Lock()
	defer mu.Unlock()
	mounts.ClearActiveCacheMounts()
}
