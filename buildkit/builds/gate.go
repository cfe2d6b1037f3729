package builds

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
	"github.com/moby/buildkit/solver/pb"

	"gitlab.com/berth-ci/berth/buildkit/spec"
)

var sharings = map[pb.CacheSharingOpt]spec.Sharing{
	pb.CacheSharingOpt_SHARED:  spec.Shared,
	pb.CacheSharingOpt_LOCKED:  spec.Locked,
	pb.CacheSharingOpt_PRIVATE: spec.Private,
}

// check is an error if jobs have a step's caches in another way than the step wants.
func (w *jobWorker) check(list []*pb.Mount) error {
	for _, m := range list {
		if m.MountType != pb.MountType_CACHE {
			continue
		}
		sharing, ok := sharings[m.CacheOpt.Sharing]
		if !ok {
			return fmt.Errorf("cache %q: no way %d to share: %w", m.CacheOpt.ID, m.CacheOpt.Sharing, errdefs.ErrInvalidArgument)
		}
		if err := w.service.engine.Mounts().Check(m.CacheOpt.ID, sharing); err != nil {
			return err
		}
		for _, h := range w.service.engine.Mounts().Holders(m.CacheOpt.ID) {
			if sharing == spec.Locked && w.job.Name != "" && h.Job == w.job.Name {
				return fmt.Errorf("cache %q is locked by this job itself until it ends, and the step would wait for it: let both ask for it as shared: %w",
					m.CacheOpt.ID, errdefs.ErrConflict)
			}
		}
	}
	return nil
}

// gate is the cache as one RUN step sees it. BuildKit would give it an empty directory where another has the cache, and
// in another way: here that is an error, at the moment when it looks for the cache.
type gate struct {
	cache.Manager
	mounts []*pb.Mount
	check  func([]*pb.Mount) error
}

// cacheIndex is where BuildKit keeps the key of a cache mount.
const cacheIndex = "cache-dir:"

func (g gate) Search(ctx context.Context, index string, prefix bool) ([]cache.RefMetadata, error) {
	key, ok := strings.CutPrefix(index, cacheIndex)
	if !ok {
		return g.Manager.Search(ctx, index, prefix)
	}
	if err := g.check(g.mounts); err != nil {
		return nil, err
	}
	found, err := g.Manager.Search(ctx, index, prefix)
	if err != nil || !g.shared(key) {
		return found, err
	}
	// It is looked for only if no other has it as shared.
	taken := false
	for _, md := range found {
		if (mounts.CacheRefMetadata{RefMetadata: md}).GetString("cache-dir") != key {
			continue
		}
		ref, err := g.GetMutable(ctx, md.ID())
		if err == nil {
			return found, ref.Release(context.WithoutCancel(ctx))
		}
		taken = taken || errors.Is(err, cache.ErrLocked)
	}
	if taken {
		return nil, fmt.Errorf("cache %q is asked for as shared, and another build has it as locked or private: one cache is shared in one way at a time; let all ask for it alike: %w",
			key, errdefs.ErrConflict)
	}
	return found, nil
}

func (g gate) shared(key string) bool {
	for _, m := range g.mounts {
		if m.MountType == pb.MountType_CACHE && m.CacheOpt.Sharing == pb.CacheSharingOpt_SHARED {
			// A mount from an image has the image's record after its id.
			if key == m.CacheOpt.ID || strings.HasPrefix(key, m.CacheOpt.ID+":") {
				return true
			}
		}
	}
	return false
}
