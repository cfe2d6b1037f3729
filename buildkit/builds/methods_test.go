package builds_test

import (
	"context"
	"net"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"gitlab.com/berth-ci/berth/buildkit/builds"
)

// Each method that is served has a rule, and each rule a method.
func TestEveryMethodHasARule(t *testing.T) {
	f := newFixture(t)
	j := f.job("job", "p1")
	served := map[string]bool{}
	for name, service := range builds.ServiceInfo(j.endpoint) {
		for _, m := range service.Methods {
			full := "/" + name + "/" + m.Name
			served[full] = true
			if _, ok := builds.Rules[full]; !ok {
				t.Errorf("%s has no rule", full)
			}
		}
	}
	for m := range builds.Rules {
		if !served[m] {
			t.Errorf("there is no %s", m)
		}
	}
}

// conn is a connection as a hostile client makes it.
func (j *job) conn() *grpc.ClientConn {
	j.Helper()
	c, err := grpc.NewClient(j.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	j.must(err)
	j.Cleanup(func() { c.Close() })
	return c
}

// What is of the node or of other jobs is not there for a job.
func TestReach(t *testing.T) {
	f := newFixture(t)
	victim, evil := f.job("victim", trusted), f.job("evil", untrusted)
	ref := identity.NewID()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := session.NewSession(t.Context(), "")
	f.must(err)
	go func() {
		_ = s.Run(ctx, func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return victim.client.Dialer()(ctx, proto, meta)
		})
	}()
	control := controlapi.NewControlClient(victim.conn())
	solved := make(chan error, 1)
	go func() {
		_, err := control.Solve(ctx, &controlapi.SolveRequest{
			Ref: ref, Session: s.ID(), Definition: f.sleep(),
		})
		solved <- err
	}()
	f.waitFor("the victim's RUN step", func() bool { return len(f.tasks()) == 1 })

	conn := evil.conn()
	control = controlapi.NewControlClient(conn)
	refused := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
	t.Run("session", func(t *testing.T) {
		for _, id := range []string{s.ID(), "", "a", "x:" + s.ID(), "a/b/c/d/e", strings.Repeat("x", 200)} {
			md := metadata.Pairs("x-docker-expose-session-uuid", id)
			stream, err := control.Session(metadata.NewOutgoingContext(t.Context(), md))
			if err == nil {
				_, err = stream.Recv()
			}
			refused("session "+id, err)
		}
		_, err := control.Solve(t.Context(), &controlapi.SolveRequest{Ref: identity.NewID(), Session: s.ID(), Definition: f.sleep()})
		refused("build with the session of another", err)
		_, err = control.Solve(t.Context(), &controlapi.SolveRequest{Ref: identity.NewID(), SourcePolicySession: s.ID(), Definition: f.sleep()})
		refused("policy by the session of another", err)
	})
	t.Run("status", func(t *testing.T) {
		stream, err := control.Status(t.Context(), &controlapi.StatusRequest{Ref: ref})
		f.must(err)
		if u, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), "no such job") {
			t.Errorf("status of another's build: %v, %v", u, err)
		}
	})
	t.Run("history", func(t *testing.T) {
		stream, err := control.ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{EarlyExit: true})
		f.must(err)
		if e, err := stream.Recv(); err == nil {
			t.Errorf("history has %v", e)
		}
		_, err = control.UpdateBuildHistory(t.Context(), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
		f.check(err)
	})
	t.Run("prune", func(t *testing.T) {
		usage, err := evil.client.DiskUsage(t.Context())
		if err != nil || len(usage) > 0 {
			t.Errorf("usage %v, %v", usage, err)
		}
		pruned := make(chan client.UsageInfo, 100)
		f.check(evil.client.Prune(t.Context(), pruned, client.PruneAll))
		if len(pruned) > 0 {
			t.Errorf("pruned %d records", len(pruned))
		}
	})
	t.Run("content", func(t *testing.T) {
		c := contentapi.NewContentClient(conn)
		list, err := c.List(t.Context(), &contentapi.ListContentRequest{})
		f.must(err)
		_, err = list.Recv()
		refused("list", err)
		read, err := c.Read(t.Context(), &contentapi.ReadContentRequest{Digest: "sha256:" + strings.Repeat("0", 64)})
		f.must(err)
		_, err = read.Recv()
		refused("read", err)
		_, err = c.Delete(t.Context(), &contentapi.DeleteContentRequest{})
		refused("delete", err)
		_, err = c.Info(t.Context(), &contentapi.InfoRequest{})
		refused("info", err)
	})
	t.Run("workers", func(t *testing.T) {
		list, err := evil.client.ListWorkers(t.Context())
		f.must(err)
		if len(list) != 1 || len(list[0].Labels) != 1 || len(list[0].Platforms) == 0 || len(list[0].GCPolicy) > 0 {
			t.Errorf("workers %+v", list)
		}
	})
	if len(f.tasks()) != 1 {
		t.Error("the victim's build was touched")
	}
	cancel()
	if err := <-solved; err == nil {
		t.Error("the victim's build ended well")
	}
}
