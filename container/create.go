package container

import (
	"context"
	"fmt"
	"path/filepath"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/agent"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Config is all that makes one container.
type Config struct {
	ID   string
	Job  string
	Role string

	Image       containerd.Image
	Snapshotter string

	// Agent runs the agent rather than the image's command; AgentProgram is
	// its binary on the node.
	Agent        bool
	AgentProgram string
	// Entrypoint and Command replace the image's.
	Entrypoint []string
	Command    []string
	User       string
	Env        []string
	// PathPrefix goes before the image's PATH.
	PathPrefix string
	Hostname   string

	// GPUs are what the container has of the node's; nil where there are none.
	GPUs *api.GPUs

	Security Security
	Profile  executor.Profile
	Limits   executor.Limits
	// Cgroup is the job's, parent of the container's.
	Cgroup string
	Netns  string
	Mounts []specs.Mount
	// Log is the file that takes the output of the main process.
	Log string
}

// agentCommand starts the agent. Entrypoints that look at their arguments
// expect the shell that gitlab-runner's docker executor passes.
func agentCommand(entrypoint []string) []string {
	if len(entrypoint) == 0 {
		return []string{agent.Program, "agent"}
	}
	return []string{"sh", "-c", "exec " + agent.Program + " agent"}
}

// agentMounts bring the agent into a container.
func agentMounts(program string) []specs.Mount {
	return []specs.Mount{
		// Its only writable file is the socket. Entrypoints may change the
		// user before they start the agent, hence the mode.
		{Destination: agent.Dir, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=64k", "nr_inodes=16"}},
		Bind(program, agent.Program, "ro"),
	}
}

// Start creates and starts a container under the lease in ctx. What a failed
// start leaves is removed with the job, which is labelled on it.
func Start(ctx context.Context, client *containerd.Client, c Config) (containerd.Task, error) {
	if c.Agent {
		c.Mounts = append(agentMounts(c.AgentProgram), c.Mounts...)
	}
	made, err := client.NewContainer(ctx, c.ID,
		containerd.WithImage(c.Image),
		containerd.WithSnapshotter(c.Snapshotter),
		containerd.WithNewSnapshot(c.ID, c.Image),
		containerd.WithContainerLabels(map[string]string{JobLabel: c.Job, RoleLabel: c.Role}),
		containerd.WithNewSpec(append([]oci.SpecOpts{withProcess(c)}, specOpts(c)...)...),
	)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	io := cio.NullIO
	if c.Log != "" {
		if c.Log, err = filepath.Abs(c.Log); err != nil {
			return nil, err
		}
		io = cio.LogFile(c.Log)
	}
	task, err := made.NewTask(ctx, io)
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", c.ID, err)
	}
	if err := task.Start(ctx); err != nil {
		return nil, fmt.Errorf("start task %s: %w", c.ID, err)
	}
	return task, nil
}
