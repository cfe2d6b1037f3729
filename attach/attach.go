// Package attach gives an operator a shell in a job's container. It goes
// through containerd and a terminal, and is no part of how jobs run.
package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/containerd/console"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/api"
)

// Options say where to go and what to do there.
type Options struct {
	Job     string
	Helper  bool
	User    string
	Command []string
}

// shell prefers bash, as jobs do.
var shell = []string{"sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"}

// Run runs a command in the job's container until it ends, and gives its
// exit status.
func Run(ctx context.Context, berthd *api.Client, o Options) (status int, err error) {
	admission, err := find(ctx, berthd, o.Job)
	if err != nil {
		return 0, err
	}
	client, err := containerd.New(admission.Containerd.Address, containerd.WithDefaultNamespace(admission.Containerd.Namespace))
	if err != nil {
		return 0, fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	role := container.RoleBuild
	if o.Helper {
		role = container.RoleHelper
	}
	c, err := client.LoadContainer(ctx, container.ID(admission.Job, role))
	if err != nil {
		return 0, fmt.Errorf("load the job's %s container: %w", role, err)
	}
	process, err := processSpec(ctx, client, c, o)
	if err != nil {
		return 0, err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("load the job's %s container: %w", role, err)
	}
	return execute(ctx, task, process)
}

// find resolves a job's id or key.
func find(ctx context.Context, berthd *api.Client, job string) (*api.Admission, error) {
	jobs, err := berthd.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, j := range jobs {
		if j.State == api.StateAdmitted && (j.Key == job || strconv.FormatInt(j.Identity.ID, 10) == job) {
			keys = append(keys, j.Key)
		}
	}
	switch len(keys) {
	case 0:
		return nil, fmt.Errorf("no job %s runs on this node; `berth jobs` lists them: %w", job, errdefs.ErrNotFound)
	case 1:
		return berthd.Admission(ctx, keys[0])
	}
	return nil, fmt.Errorf("job %s is ambiguous: say which one of %v", job, keys)
}

func processSpec(ctx context.Context, client *containerd.Client, c containerd.Container, o Options) (*specs.Process, error) {
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the container's spec: %w", err)
	}
	if o.User != "" {
		info, err := c.Info(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the container: %w", err)
		}
		if err := oci.WithUser(o.User)(ctx, client, &info, spec); err != nil {
			return nil, fmt.Errorf("user %q: %w", o.User, err)
		}
	}
	p := spec.Process
	p.Terminal = isTerminal()
	p.Args = o.Command
	if len(p.Args) == 0 {
		p.Args = shell
	}
	return p, nil
}

func isTerminal() bool {
	_, err := console.ConsoleFromFile(os.Stdin)
	return err == nil
}

func execute(ctx context.Context, task containerd.Task, spec *specs.Process) (status int, err error) {
	opts := []cio.Opt{cio.WithStdio}
	var terminal console.Console
	if spec.Terminal {
		terminal = console.Current()
		if err := terminal.SetRaw(); err != nil {
			return 0, fmt.Errorf("set the terminal to raw mode: %w", err)
		}
		defer func() { err = errors.Join(err, terminal.Reset()) }()
		opts = []cio.Opt{cio.WithStreams(terminal, terminal, nil), cio.WithTerminal}
	}
	process, err := task.Exec(ctx, "attach-"+uuid.NewString(), spec, cio.NewCreator(opts...))
	if err != nil {
		return 0, fmt.Errorf("start the shell: %w", err)
	}
	undo := context.WithoutCancel(ctx)
	defer func() {
		if _, deleteErr := process.Delete(undo, containerd.WithProcessKill); deleteErr != nil && !errdefs.IsNotFound(deleteErr) {
			err = errors.Join(err, deleteErr)
		}
	}()
	exited, err := process.Wait(undo)
	if err != nil {
		return 0, fmt.Errorf("wait for the shell: %w", err)
	}
	if err := process.Start(ctx); err != nil {
		return 0, fmt.Errorf("start the shell: %w", err)
	}
	if terminal != nil {
		defer followSize(ctx, terminal, process)()
	}
	select {
	case exit := <-exited:
		process.IO().Wait()
		return int(exit.ExitCode()), exit.Error()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// followSize tells the container the size of the terminal, now and whenever
// it changes.
func followSize(ctx context.Context, terminal console.Console, process containerd.Process) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	changes <- syscall.SIGWINCH
	go func() {
		for range changes {
			if size, err := terminal.Size(); err == nil {
				_ = process.Resize(ctx, uint32(size.Width), uint32(size.Height))
			}
		}
	}()
	return func() { signal.Stop(changes); close(changes) }
}
