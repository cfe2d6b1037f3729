package builds

import (
	"context"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// rule is what becomes of a method.
type rule int

const (
	refuse  rule = iota
	pass         // it reaches nothing but the job's own
	inspect      // its request is looked at, or changed
	ignore       // it is answered as if there were nothing to do
)

const (
	controlService = "/moby.buildkit.v1.Control/"
	bridgeService  = "/moby.buildkit.v1.frontend.LLBBridge/"
	contentService = "/containerd.services.content.v1.Content/"
	healthService  = "/grpc.health.v1.Health/"
	traceService   = "/opentelemetry.proto.collector.trace.v1.TraceService/"
)

// rules has every method that is served. What is not here is refused.
var rules = map[string]rule{
	controlService + "Solve":              inspect,
	controlService + "Session":            inspect,
	controlService + "Status":             pass,
	controlService + "Info":               pass,
	controlService + "ListWorkers":        pass,
	controlService + "DiskUsage":          pass, // of nothing
	controlService + "Prune":              ignore,
	controlService + "ListenBuildHistory": pass, // of nothing
	controlService + "UpdateBuildHistory": ignore,

	bridgeService + "ResolveImageConfig": pass,
	bridgeService + "ResolveSourceMeta":  pass,
	bridgeService + "Solve":              pass,
	bridgeService + "ReadFile":           pass,
	bridgeService + "ReadDir":            pass,
	bridgeService + "StatFile":           pass,
	bridgeService + "Evaluate":           pass,
	bridgeService + "Ping":               pass,
	bridgeService + "Return":             pass,
	bridgeService + "Inputs":             pass,
	bridgeService + "NewContainer":       inspect,
	bridgeService + "ReleaseContainer":   pass,
	bridgeService + "ReadFileContainer":  pass,
	bridgeService + "ReadDirContainer":   pass,
	bridgeService + "StatFileContainer":  pass,
	bridgeService + "ExecProcess":        pass,
	bridgeService + "Warn":               pass,

	// It is the node's content, of all jobs.
	contentService + "Info":         refuse,
	contentService + "Update":       refuse,
	contentService + "List":         refuse,
	contentService + "Delete":       refuse,
	contentService + "Read":         refuse,
	contentService + "Status":       refuse,
	contentService + "ListStatuses": refuse,
	contentService + "Write":        refuse,
	contentService + "Abort":        refuse,

	healthService + "Check": pass,
	healthService + "List":  pass,
	healthService + "Watch": pass,

	traceService + "Export": pass, // to nobody
}

func denied(format string, a ...any) error {
	return status.Errorf(codes.PermissionDenied, format, a...)
}

func (e *Endpoint) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	switch rules[info.FullMethod] {
	case pass:
	case ignore:
		return &controlapi.UpdateBuildHistoryResponse{}, nil
	case inspect:
		if err := e.inspect(req); err != nil {
			return nil, err
		}
	default:
		return nil, denied("%s is not for jobs", info.FullMethod)
	}
	return handle(ctx, req)
}

// inspect looks at requests that reach beyond the job's own; it may change them.
func (e *Endpoint) inspect(req any) error {
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		return e.inspectSolve(r)
	case *gatewayapi.NewContainerRequest:
		return e.inspectContainer(r)
	}
	return denied("%T is not for jobs", req)
}

func (e *Endpoint) inspectSolve(r *controlapi.SolveRequest) error {
	for _, id := range []string{r.Session, r.SourcePolicySession} {
		if id != "" && !e.service.claims.claim(id, e.job.Key) {
			return denied("session %.40q is not of this job", id)
		}
	}
	for _, ent := range r.Entitlements {
		if !contains(e.job.Entitlements, ent) {
			return denied("entitlement %.80q is not granted to this job", ent)
		}
	}
	if r.ProxyNetwork {
		return denied("a proxied network is not given to builds")
	}
	return nil
}

// inspectContainer confines a container that a client starts beside the steps of its build, as ResolveOp does these.
func (e *Endpoint) inspectContainer(r *gatewayapi.NewContainerRequest) error {
	exec := &pb.ExecOp{Network: r.Network, Mounts: r.Mounts}
	confined, err := e.worker.confine(exec)
	if err != nil {
		return err
	}
	if err := e.worker.check(confined.Mounts); err != nil {
		return err
	}
	r.Mounts = confined.Mounts
	return nil
}

func (e *Endpoint) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	switch rules[info.FullMethod] {
	case pass:
	case ignore:
		return nil
	case inspect: // Session
		md, _ := metadata.FromIncomingContext(ss.Context())
		if v := md.Get(headerSession); len(v) != 1 || !e.service.claims.claim(v[0], e.job.Key) {
			return denied("session %.80q is not of this job", v)
		}
	default:
		return denied("%s is not for jobs", info.FullMethod)
	}
	return handle(srv, ss)
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
