package image

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platformsIn lists the platforms of target whose manifests the store has.
func platformsIn(ctx context.Context, store content.Store, target ocispec.Descriptor) []string {
	return platformsOf(ctx, store, target, func(d ocispec.Descriptor) bool {
		_, err := store.Info(ctx, d.Digest)
		return err == nil
	})
}

// platformsOf lists the platforms that an index in the store offers, of those manifests that keep keeps.
func platformsOf(ctx context.Context, store content.Provider, index ocispec.Descriptor, keep func(ocispec.Descriptor) bool) []string {
	if !images.IsIndexType(index.MediaType) {
		return nil
	}
	children, err := images.Children(ctx, store, index)
	if err != nil {
		return nil
	}
	var list []string
	for _, d := range children {
		// Attestations are of platform unknown/unknown.
		if d.Platform != nil && d.Platform.OS != "unknown" && keep(d) {
			list = append(list, platforms.FormatAll(*d.Platform))
		}
	}
	return list
}
