package builds

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/containerdexecutor"
	"github.com/moby/buildkit/executor/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/iohelper"
)

// runner runs the RUN steps of a job, and frontends that are images.
type runner struct {
	executor.Executor
	prefix string // of containers' ids, and all of one length
	cgroup string
	host   bool // network.host is granted

	mu     sync.Mutex
	closed bool
	runs   sync.WaitGroup
}

func (s *Service) newRunner(j Job, dir string) *runner {
	dns := &oci.DNSConfig{}
	if j.Network != nil {
		for _, a := range j.Network.Nameservers() {
			dns.Nameservers = append(dns.Nameservers, a.String())
		}
	}
	return &runner{
		Executor: containerdexecutor.New(containerdexecutor.ExecutorOptions{
			Client: s.client, Root: dir, NetworkProviders: networks(j), DNSConfig: dns,
		}),
		prefix: j.id(),
		cgroup: j.Cgroup,
		host:   j.may(entitlements.EntitlementNetworkHost),
	}
}

// name is a container's, by its id in BuildKit: empty for a step's.
func (r *runner) name(id string) string {
	if id == "" {
		id = identity.NewID()
	}
	return r.prefix + id
}

func (r *runner) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("the job has ended: %w", errdefs.ErrAborted)
	}
	r.runs.Add(1)
	return nil
}

// Run names the container so that it is found again, and puts it in the job's cgroup whatever the build says.
func (r *runner) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	defer r.runs.Done()
	p.Meta.CgroupParent = r.cgroup
	if p.Meta.NetMode == pb.NetMode_HOST && r.host {
		p.Meta.NetMode = pb.NetMode_UNSET // the job's; there is no other
	}
	if p.Stderr == os.Stderr { // a frontend's
		p.Stderr = &iohelper.NopWriteCloser{Writer: io.Discard}
	}
	return r.Executor.Run(ctx, r.name(id), root, mounts, p, started)
}

// Exec is a further process in a container of a client's.
func (r *runner) Exec(ctx context.Context, id string, p executor.ProcessInfo) error {
	if err := r.begin(); err != nil {
		return err
	}
	defer r.runs.Done()
	return r.Executor.Exec(ctx, r.name(id), p)
}

// close lets no step begin, and waits for those that run.
func (r *runner) close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		r.runs.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for RUN steps: %w", context.Cause(ctx))
	}
}
