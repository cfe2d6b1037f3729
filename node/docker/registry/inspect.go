package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is more than registries take for one.
const maxManifest = 8 << 20

// Inspect tells of an image that need not be on the node.
func (r *Repository) Inspect(ctx context.Context) (about registry.DistributionInspect, err error) {
	resolver := r.resolver(docker.NewInMemoryTracker())
	name, desc, err := resolver.Resolve(ctx, r.named.String())
	if err != nil {
		return about, refused(r.named, err)
	}
	about.Descriptor = ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return about, err
	}
	switch {
	case images.IsIndexType(desc.MediaType):
		var index ocispec.Index
		if err := read(ctx, fetcher, desc, &index); err != nil {
			return about, err
		}
		for _, m := range index.Manifests {
			if m.Platform != nil {
				about.Platforms = append(about.Platforms, *m.Platform)
			}
		}
	case images.IsManifestType(desc.MediaType):
		var manifest ocispec.Manifest
		if err := read(ctx, fetcher, desc, &manifest); err != nil {
			return about, err
		}
		var platform ocispec.Platform
		if err := read(ctx, fetcher, manifest.Config, &platform); err != nil {
			return about, err
		}
		if platform.OS != "" || platform.Architecture != "" {
			about.Platforms = []ocispec.Platform{platform}
		}
	}
	return about, nil
}

// read gets a document of a registry's.
func read(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor, into any) error {
	if desc.Size > maxManifest {
		return fmt.Errorf("read %s: it has %d bytes: %w", desc.Digest, desc.Size, errdefs.ErrOutOfRange)
	}
	body, err := f.Fetch(ctx, desc)
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxManifest))
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	if desc.Digest.Algorithm().FromBytes(text) != desc.Digest {
		return fmt.Errorf("read %s: it is not what it says: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	return nil
}
