package buildkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/util/leaseutil"
)

// rootLabel is on the leases of an engine, and names its root: others have leases in the namespace, too.
const rootLabel = "berth.engine"

// labelled puts the label on all leases that BuildKit makes.
type labelled struct {
	*leaseutil.Manager
	root string
}

// Create makes a lease. BuildKit's options set all labels anew.
func (l labelled) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	return l.Manager.Create(ctx, append(opts[:len(opts):len(opts)], func(lease *leases.Lease) error {
		labels := maps.Clone(lease.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[rootLabel] = l.root
		lease.Labels = labels
		return nil
	})...)
}

// sweepLeases deletes those of layers that were being made, or deleted, when an engine was killed: BuildKit knows
// nothing of them. Nothing may make any meanwhile.
func sweepLeases(ctx context.Context, m *leaseutil.Manager, root string, store *metadata.Store) error {
	items, err := store.All()
	if err != nil {
		return fmt.Errorf("list BuildKit's records: %w", err)
	}
	known := map[string]bool{}
	for _, item := range items {
		known[item.ID()] = true
	}
	ours, err := m.List(ctx, fmt.Sprintf("labels.%q==%q", rootLabel, root))
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	var errs []error
	for _, l := range ours {
		// Views are leased by what they are of.
		if record, _, _ := strings.Cut(l.ID, "-"); !known[record] {
			errs = append(errs, m.Delete(ctx, l))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete leases that nobody has: %w", err)
	}
	return nil
}
