package buildkit_test

import (
	"context"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
)

// What a killed engine was about to make is gone at the next start, and nothing else: neither what it keeps nor what
// others have in the namespace.
func TestKilledAmidNew(t *testing.T) {
	e := enginetest.New(t)
	ctx := namespaces.WithNamespace(t.Context(), e.Config.Namespace)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	client, err := containerd.New(e.Config.Address)
	must(err)
	defer client.Close()
	kept, err := e.Generations().Empty(t.Context(), "p/kept", "job")
	must(err)
	_, _, err = kept.Publish(t.Context())
	must(err)
	// As BuildKit does, up to the record that it would write.
	for name, labels := range map[string]map[string]string{
		"ours0": {"berth.engine": e.Config.Root}, "others": {}, "elsewhere": {"berth.engine": "/another"},
	} {
		l, err := client.LeasesService().Create(ctx, leases.WithID(name), leases.WithLabels(labels))
		must(err)
		_, err = client.SnapshotService(buildkit.Snapshotter).Prepare(leases.WithLease(ctx, l.ID), name, "")
		must(err)
	}
	e.Restart(buildkit.Held{})
	found := map[string]bool{}
	all, err := client.LeasesService().List(ctx)
	must(err)
	for _, l := range all {
		found[l.ID] = true
	}
	if found["ours0"] || !found["others"] || !found["elsewhere"] {
		t.Errorf("leases: %v", found)
	}
	info, ok := e.Generations().Newest("p/kept")
	if !ok || !found[info.ID] {
		t.Errorf("the lease of %v is gone", info)
	}
	count := 0
	l, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	must(err)
	must(client.LeasesService().Delete(ctx, l, leases.SynchronousDelete))
	must(client.SnapshotService(buildkit.Snapshotter).Walk(ctx, func(context.Context, snapshots.Info) error { count++; return nil }))
	if count != 3 {
		t.Errorf("%d snapshots", count)
	}
}
