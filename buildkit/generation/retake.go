package generation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Retake takes back, after a restart, the clones of jobs that live on, by what their journals say, and discards all
// others. What is mounted stays mounted: a job sees nothing of it. Until it was called no clone is made.
//
// Clones that were being published are published now. They, and those that are gone, come back as lost.
func (s *Store) Retake(ctx context.Context, records []Record) (clones []*Clone, lost []Record, err error) {
	kept := map[string]bool{"empty": true}
	for _, r := range records {
		c, err := s.retake(ctx, r)
		switch {
		// Who was killed while it discarded a clone may have left the record without the layer.
		case cache.IsNotFound(err), errdefs.IsNotFound(err):
			lost = append(lost, r)
			if err := s.rollForward(ctx, r); err != nil {
				logrus.WithError(err).WithField("cache", r.Key).Warn("cannot publish a cache that was being published")
			}
		case err != nil:
			return nil, nil, err
		default:
			kept[r.ID] = true
			clones = append(clones, c)
		}
	}
	if err := s.unmountAll(kept); err != nil {
		return nil, nil, err
	}
	if err := s.discardAll(ctx); err != nil {
		logrus.WithError(err).Warn("cannot discard clones that nobody has")
	}
	s.ready.Store(true)
	return clones, lost, nil
}

func (s *Store) retake(ctx context.Context, r Record) (*Clone, error) {
	ref, err := s.Cache.GetMutable(ctx, r.ID)
	if err != nil {
		return nil, fmt.Errorf("take back clone of cache %q: %w", r.Key, err)
	}
	o, err := s.overlay(ctx, r.ID)
	switch {
	case errdefs.IsNotFound(err):
		return nil, errors.Join(err, drop(ctx, ref))
	case err != nil:
		return nil, err // the job may need it yet
	}
	return &Clone{store: s, ref: ref, record: r, overlay: o}, nil
}

// rollForward publishes the layer that a clone has become, if whoever published it was killed before that was done.
func (s *Store) rollForward(ctx context.Context, r Record) error {
	if _, ok := s.Published(r); ok {
		return nil
	}
	records, err := s.records(ctx, r.Key)
	if err != nil {
		return err
	}
	for _, known := range records {
		info := known.info
		if info.Clone != r.ID || info.Number != 0 || info.Withdrawn || info.Boot != s.boot {
			continue
		}
		ref, err := s.Cache.Get(ctx, info.ID, nil)
		if cache.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("get layer of clone: %w", err)
		}
		info.Size = 0
		if info.Base != "" && r.Base != nil {
			info.Size = r.Base.Size
		}
		info, err = s.publish(ctx, ref, info, r)
		switch {
		case errdefs.IsAborted(err):
			return nil
		case err != nil:
			return err
		}
		logrus.WithFields(logrus.Fields{"cache": r.Key, "generation": info.Number, "job": r.Job}).Info("published what was being published")
		return nil
	}
	return nil
}

// unmountAll removes the mounts of jobs that are gone.
func (s *Store) unmountAll(kept map[string]bool) error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return fmt.Errorf("read mounts of caches: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if !kept[entry.Name()] {
			errs = append(errs, layer.Unmount(filepath.Join(s.Dir, entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// discardAll drops the clones that nobody holds.
func (s *Store) discardAll(ctx context.Context) error {
	usage, err := s.Cache.DiskUsage(ctx, client.DiskUsageInfo{Filter: []string{"type==" + string(TypeClone)}})
	if err != nil {
		return fmt.Errorf("find clones: %w", err)
	}
	var errs []error
	for _, u := range usage {
		if u.InUse {
			continue
		}
		ref, err := s.Cache.GetMutable(ctx, u.ID)
		if err == nil {
			err = ref.Release(ctx)
		}
		if err != nil && !cache.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("discard clone: %w", err))
		}
	}
	return errors.Join(append(errs, s.discardUnmarked(ctx))...)
}

// discardUnmarked drops the layers that clones were about to become when berthd was killed.
func (s *Store) discardUnmarked(ctx context.Context) error {
	filter := fmt.Sprintf("type!=%s,type!=%s,type!=%s", TypeClone, TypeGeneration, client.UsageRecordTypeCacheMount)
	usage, err := s.Cache.DiskUsage(ctx, client.DiskUsageInfo{Filter: []string{filter}})
	if err != nil {
		return fmt.Errorf("find layers of clones: %w", err)
	}
	var garbage []string
	for _, u := range usage {
		if strings.HasPrefix(u.Description, described) {
			garbage = append(garbage, "id=="+u.ID)
		}
	}
	if len(garbage) == 0 {
		return nil
	}
	if err := s.Cache.Prune(ctx, nil, client.PruneInfo{All: true, Filter: garbage}); err != nil {
		return fmt.Errorf("discard layers of clones: %w", err)
	}
	return nil
}

// Collect deletes the layers that no generation and no clone needs any more.
func (s *Store) Collect(ctx context.Context) error {
	found, err := s.Cache.Search(ctx, infoIndex, true)
	if err != nil {
		return fmt.Errorf("search generations: %w", err)
	}
	var garbage []string
	for _, md := range found {
		if md.GetString(entryValue) == "" {
			garbage = append(garbage, "id=="+md.ID())
		}
	}
	if len(garbage) == 0 {
		return nil
	}
	// What is used, by a clone or as the layer below another, is left by BuildKit.
	if err := s.Cache.Prune(ctx, nil, client.PruneInfo{All: true, Filter: garbage}); err != nil {
		return fmt.Errorf("delete layers: %w", err)
	}
	return nil
}
