package builds

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/linuxresources"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
)

// jobWorker is the engine's worker as the builds of one job use it: with sources, networks, names and caches of theirs.
// Everything that is built passes here, whatever frontend or client it comes from.
type jobWorker struct {
	*base.Worker
	service    *Service
	job        Job
	runner     *runner
	images     *imageStore
	registries *registries
}

func (s *Service) newWorker(j Job, r *runner, t *transport, regs *registries) (*jobWorker, error) {
	engine := s.engine.Unguarded()
	own := &imageStore{
		Store: engine.ImageStore, job: j, naming: &s.naming, known: newKnown(engine.ContentStore(), j.Namespace),
	}
	w := &base.Worker{WorkerOpt: engine.WorkerOpt, CacheMgr: engine.CacheMgr}
	w.WorkerOpt.Executor = r
	w.NetworkProviders = nil
	w.ProxyProvider = nil
	w.WorkerOpt.CDIManager = nil
	w.RegistryHosts = s.hosts
	w.ImageStore = own
	// buildx asks for the snapshotter; the rest is about the node.
	const snapshotter = "org.mobyproject.buildkit.worker.snapshotter"
	w.WorkerOpt.Labels = map[string]string{snapshotter: buildkit.Snapshotter}
	if err := s.addSources(w, own, t, regs, j.Namespace); err != nil {
		return nil, err
	}
	return &jobWorker{Worker: w, service: s, job: j, runner: r, images: own, registries: regs}, nil
}

// ResolveOp is where a step of a build becomes an operation, and the last of all ways in.
func (w *jobWorker) ResolveOp(v solver.Vertex, b frontend.FrontendLLBBridge, sm *session.Manager, _ worker.ProxyOpt) (solver.Op, error) {
	op, ok := v.Sys().(*pb.Op)
	if !ok {
		return nil, fmt.Errorf("step is a %T: %w", v.Sys(), errdefs.ErrInvalidArgument)
	}
	switch o := op.Op.(type) {
	case *pb.Op_Build:
		return nil, fmt.Errorf("a build inside a build (LLB's build operation) is refused: %w", errdefs.ErrPermissionDenied)
	case *pb.Op_Exec:
		exec, err := w.confine(o.Exec)
		if err != nil {
			return nil, err
		}
		if err := w.check(exec.GetMounts()); err != nil {
			return nil, err
		}
		var res *pb.LinuxResources
		if m, ok := v.Options().Metadata.(*linuxresources.Metadata); ok && m != nil {
			res = m.LinuxResources
		}
		cm := gate{Manager: w.CacheMgr, mounts: exec.GetMounts(), check: w.check}
		return ops.NewExecOp(v, &pb.Op_Exec{Exec: exec}, op.Platform, cm, w.ParallelismSem, sm, w.runner, w.Worker, res, false)
	}
	return w.Worker.ResolveOp(v, b, sm, worker.ProxyOpt{})
}

// ResolveSourceMetadata asks what a name means.
func (w *jobWorker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, j solver.JobContext) (*sourceresolver.MetaResponse, error) {
	return w.Worker.ResolveSourceMetadata(w.registries.with(ctx, sessionsOf(j)), op, opt, sm, j)
}

// confine is a RUN step with its caches in the job's namespace, and nothing that the job may not have.
func (w *jobWorker) confine(exec *pb.ExecOp) (*pb.ExecOp, error) {
	exec = exec.CloneVT()
	if exec.Network == pb.NetMode_HOST && !w.job.may(entitlements.EntitlementNetworkHost) {
		return nil, fmt.Errorf("the network of the host is not granted to this job: %w", errdefs.ErrPermissionDenied)
	}
	if exec.Security != pb.SecurityMode_SANDBOX && !w.job.may(entitlements.EntitlementSecurityInsecure) {
		return nil, fmt.Errorf("security=insecure is not granted to this job: %w", errdefs.ErrPermissionDenied)
	}
	if len(exec.CdiDevices) > 0 {
		return nil, fmt.Errorf("devices are not given to builds: %w", errdefs.ErrPermissionDenied)
	}
	if exec.Meta != nil {
		exec.Meta.CgroupParent = "" // the job's, in runner
	}
	for _, m := range exec.GetMounts() {
		if m.MountType != pb.MountType_CACHE {
			continue
		}
		if m.CacheOpt == nil {
			m.CacheOpt = &pb.CacheOpt{}
		}
		id := m.CacheOpt.ID
		if id == "" {
			id = m.Dest
		}
		key, err := w.key(id)
		if err != nil {
			return nil, err
		}
		m.CacheOpt.ID = key
	}
	return exec, nil
}

const maxID = 512

// key is the key of a cache by its id in LLB, which the Dockerfile frontend writes with a slash in front where the client
// names no namespace. One that it names is a part of the id.
func (w *jobWorker) key(id string) (string, error) {
	if len(id) > maxID || strings.Contains(id, ":") {
		return "", fmt.Errorf("cache id %.80q has a colon or is too long: %w", id, errdefs.ErrInvalidArgument)
	}
	return cachemount.Key(w.job.Namespace, strings.TrimPrefix(id, "/")), nil
}

// Exporter makes what a build puts out.
func (w *jobWorker) Exporter(name string, sm *session.Manager) (e exporterOf, err error) {
	switch name {
	case client.ExporterImage, exporterMoby:
		return w.imageExporter(name, sm)
	case client.ExporterLocal, client.ExporterTar, client.ExporterOCI, client.ExporterDocker:
		// To the client, over its session.
		return w.plainExporter(name, sm)
	}
	return nil, fmt.Errorf("no exporter %q; expected image, local, tar, oci or docker: %w", name, errdefs.ErrPermissionDenied)
}

// What any client could do to all: see the engine's guard, which this worker is not.

// PruneCacheMounts does nothing.
func (*jobWorker) PruneCacheMounts(context.Context, map[string]bool) error { return nil }

// Prune does nothing.
func (*jobWorker) Prune(context.Context, chan client.UsageInfo, ...client.PruneInfo) error {
	return nil
}

// DiskUsage tells nothing.
func (*jobWorker) DiskUsage(context.Context, client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	return nil, nil
}

// GCPolicy is none: room is made by package gc.
func (*jobWorker) GCPolicy() []client.PruneInfo { return nil }

// GarbageCollect does nothing.
func (*jobWorker) GarbageCollect(context.Context) error { return nil }

// Close leaves the engine to other jobs.
func (*jobWorker) Close() error { return nil }
