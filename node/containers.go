package node

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"

	"gitlab.com/berth-ci/berth/container"
)

// runtimeContainers are the Containers of a containerd.
type runtimeContainers struct{ client *containerd.Client }

func (r runtimeContainers) Hold(ctx context.Context, job string) error {
	_, err := r.client.LeasesService().Create(ctx,
		leases.WithID(container.LeaseName(job)),
		leases.WithLabels(map[string]string{container.JobLabel: job}))
	if err != nil {
		return fmt.Errorf("make lease: %w", err)
	}
	return nil
}

func (r runtimeContainers) Kill(ctx context.Context, job string) error {
	return container.Kill(ctx, r.client, job)
}

func (r runtimeContainers) Remove(ctx context.Context, job string) error {
	return container.Remove(ctx, r.client, job)
}

func (r runtimeContainers) Jobs(ctx context.Context) ([]string, error) {
	return container.Jobs(ctx, r.client)
}
