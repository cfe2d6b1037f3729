package builds

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/worker"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// newController makes a job's own BuildKit, down to the worker.
func (e *Endpoint) newController(w *jobWorker) (err error) {
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return fmt.Errorf("add worker: %w", err)
	}
	fronts, err := frontends(workers.Infos())
	if err != nil {
		return err
	}
	results, release, err := e.service.results.use(e.job.Namespace)
	if err != nil {
		return err
	}
	e.undo(release)
	// A controller closes its store, and the results are those of others, too: this one is empty.
	empty, err := bboltcachestorage.NewStore(filepath.Join(e.dir, "empty.db"))
	if err != nil {
		return fmt.Errorf("make store of controller: %w", err)
	}
	e.controller, err = control.NewController(control.Opt{
		SessionManager:            e.sessions,
		WorkerController:          workers,
		Frontends:                 fronts,
		CacheManager:              results,
		ResolveCacheExporterFuncs: e.cacheExporters(),
		ResolveCacheImporterFuncs: e.cacheImporters(w.ContentStore()),
		Entitlements:              e.job.Entitlements,
		HistoryDB:                 history{e.service.history, &e.ended},
		HistoryConfig:             noHistory(),
		CacheStore:                empty,
		LeaseManager:              w.LeaseManager(),
		ContentStore:              w.ContentStore(),
		GarbageCollect:            w.GarbageCollect,
		GracefulStop:              e.ctx.Done(),
	})
	if err != nil {
		return errors.Join(fmt.Errorf("make controller: %w", err), empty.Close())
	}
	e.undo(e.controller.Close)
	return nil
}

// frontends read what is to be built: BuildKit's own Dockerfile, or an image that does (# syntax=).
func frontends(infos worker.Infos) (map[string]frontend.Frontend, error) {
	infos = noContainers{infos}
	gw, err := gateway.NewGatewayFrontend(infos, nil)
	if err != nil {
		return nil, fmt.Errorf("make gateway frontend: %w", err)
	}
	return map[string]frontend.Frontend{
		"dockerfile.v0": forwarder.NewGatewayForwarder(infos, dockerfile.Build),
		"gateway.v0":    gw,
	}, nil
}

// noContainers keeps frontends from containers that are no step: their requests come over a pipe and meet neither the
// interceptor nor the worker, and name any cache. The cache manager is what they are made with.
type noContainers struct{ worker.Infos }

func (noContainers) DefaultCacheManager() (cache.Manager, error) {
	return nil, fmt.Errorf("a frontend may not start containers: %w", errdefs.ErrPermissionDenied)
}

// Caches elsewhere: in registries; with the client, by its session; and in the image itself. Those of
// clouds (s3, gha, azblob) are reached from berthd at any address that a build names.

func (e *Endpoint) cacheExporters() map[string]remotecache.ResolveCacheExporterFunc {
	m := map[string]remotecache.ResolveCacheExporterFunc{
		"registry": e.registryCacheExporter,
		"local":    localcache.ResolveCacheExporterFunc(e.sessions),
		"inline":   inline.ResolveCacheExporterFunc(),
	}
	for k, f := range m {
		m[k] = func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Exporter, error) {
			if err := unsafe(attrs); err != nil {
				return nil, err
			}
			return f(ctx, g, attrs)
		}
	}
	return m
}

func (e *Endpoint) registryCacheExporter(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Exporter, error) {
	as := func(ctx context.Context) context.Context { return e.registries.with(ctx, g) }
	to, err := registrycache.ResolveCacheExporterFunc(e.sessions, e.service.hosts)(as(ctx), g, attrs)
	if err != nil {
		return nil, err
	}
	return registryCacheExporter{to, as}, nil
}

type registryCacheExporter struct {
	remotecache.Exporter
	as func(context.Context) context.Context
}

func (c registryCacheExporter) Finalize(ctx context.Context) (map[string]string, error) {
	return c.Exporter.Finalize(c.as(ctx))
}

func (e *Endpoint) cacheImporters(cs content.Store) map[string]remotecache.ResolveCacheImporterFunc {
	m := map[string]remotecache.ResolveCacheImporterFunc{
		"registry": e.registryCacheImporter(cs),
		"local":    localcache.ResolveCacheImporterFunc(e.sessions),
	}
	for k, f := range m {
		m[k] = func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Importer, ocispecs.Descriptor, error) {
			if err := unsafe(attrs); err != nil {
				return nil, ocispecs.Descriptor{}, err
			}
			return f(ctx, g, attrs)
		}
	}
	return m
}

func (e *Endpoint) registryCacheImporter(cs content.Store) remotecache.ResolveCacheImporterFunc {
	resolve := registrycache.ResolveCacheImporterFunc(e.sessions, cs, e.service.hosts)
	return func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Importer, ocispecs.Descriptor, error) {
		as := func(ctx context.Context) context.Context { return e.registries.with(ctx, g) }
		from, desc, err := resolve(as(ctx), g, attrs)
		if err != nil {
			return nil, ocispecs.Descriptor{}, err
		}
		return registryCacheImporter{from, as}, desc, nil
	}
}

type registryCacheImporter struct {
	remotecache.Importer
	as func(context.Context) context.Context
}

func (c registryCacheImporter) Resolve(ctx context.Context, desc ocispecs.Descriptor, id string, w worker.Worker) (solver.CacheManager, error) {
	return c.Importer.Resolve(c.as(ctx), desc, id, w)
}
