package buildkit

import (
	"context"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/worker/base"
)

// guarded is the stock worker without any client's power over what is kept. The API has no notion of whose something
// is, so what it asks for is done to nothing: scripts that prune at their end go on.
type guarded struct{ *base.Worker }

// PruneCacheMounts is called for each step of a build without cache (--no-cache). It would drop the cache mounts that
// the step names, even those in use, and with them the table of what is shared.
func (guarded) PruneCacheMounts(context.Context, map[string]bool) error { return nil }

// Prune is what `buildctl prune` calls. Room is made by package gc alone.
func (guarded) Prune(context.Context, chan client.UsageInfo, ...client.PruneInfo) error { return nil }

// DiskUsage is what `buildctl du` calls. It would tell of all jobs; and BuildKit holds a cache mount while it measures
// it, and hands an empty one to the build that comes then.
func (guarded) DiskUsage(context.Context, client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	return nil, nil
}
