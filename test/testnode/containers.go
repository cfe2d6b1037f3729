package testnode

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/api"
)

// Containerd connects to the node's containerd.
func (n *Node) Containerd() (*containerd.Client, error) {
	address := n.Config.Runtime.Address
	if n.Config.Runtime.Managed {
		address = filepath.Join(n.Config.State, "containerd", "containerd.sock")
	}
	return containerd.New(address,
		containerd.WithDefaultNamespace(n.Config.Runtime.Namespace))
}

// containers lists all in containerd that is not an image's.
func (n *Node) containers(ctx context.Context) (left []string, err error) {
	client, err := n.Containerd()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if err := collect(ctx, client); err != nil {
		return nil, err
	}
	all, err := client.Containers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range all {
		left = append(left, "container "+c.ID())
	}
	// BuildKit holds what it keeps by leases of its own.
	held, err := client.LeasesService().List(ctx, fmt.Sprintf("labels.%q", container.JobLabel))
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	for _, l := range held {
		left = append(left, "lease "+l.ID)
	}
	kept, err := n.Client.Caches(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range kept {
		if c.Held && c.Kind != api.CacheBuilds || len(c.Holders) > 0 {
			left = append(left, fmt.Sprintf("%s %s in use by %v", c.Kind, c.Key, c.Holders))
		}
	}
	err = client.SnapshotService(n.Config.Runtime.Snapshotter).Walk(ctx, func(_ context.Context, s snapshots.Info) error {
		// Cache mounts and what clients have sent as context of builds; the engine looks at layers by views.
		isKept := slices.ContainsFunc(kept, func(c api.Cache) bool { return c.ID == s.Name })
		if s.Kind == snapshots.KindActive && !isKept {
			left = append(left, fmt.Sprintf("snapshot %s (%s upon %q, made %s)", s.Name, s.Kind, s.Parent, s.Created.Format(time.TimeOnly)))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return left, nil
}

// collect has containerd remove at once what nothing holds, which it otherwise
// does now and then.
func collect(ctx context.Context, client *containerd.Client) error {
	service := client.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("make lease: %w", err)
	}
	if err := service.Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}
