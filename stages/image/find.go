package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
)

// found is what the node has of an image.
type found struct {
	image    client.Image // nil when there is none for the platform
	unpacked bool
	others   []string // the platforms that the node has it for, where it lacks the wanted one
}

// candidates are the names by which the image may be stored, the first that exists counts.
func (j *job) candidates() []string {
	if j.scope == nil {
		return []string{j.named.String()}
	}
	return j.scope.Candidates(j.named)
}

// find looks for the image on the node by the names that it may be stored by, with a target of the given digest if
// that is not empty.
func (j *job) find(ctx context.Context, want digest.Digest, stored ...string) (found, error) {
	for _, name := range stored {
		record, err := j.Client.ImageService().Get(ctx, name)
		if err == nil && !j.usable(record, want) {
			continue
		}
		if err == nil {
			err = j.touch(ctx, record)
		}
		f := found{}
		if err == nil {
			f, err = j.lookup(ctx, record)
		}
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return found{}, fmt.Errorf("look up image %s in containerd: %w", j.ref, err)
		}
		return f, nil
	}
	return found{}, nil
}

// touch notes on an image that is there that it is used. What keeps it there is the caller's lease; the note is for when
// the job has ended.
func (j *job) touch(ctx context.Context, record images.Image) error {
	err := lastuse.Touch(ctx, j.Client.ImageService(), record)
	if err == nil || errdefs.IsNotFound(err) {
		return err
	}
	j.log.Printf("WARNING: image %s: %v", j.ref, err)
	return nil
}

// usable tells whether an image that is stored by one of the names may be the one.
func (j *job) usable(record images.Image, want digest.Digest) bool {
	if want != "" && record.Target.Digest != want {
		return false
	}
	made := strings.HasPrefix(record.Name, names.Domain+"/") && record.Labels[names.OriginLabel] != names.OriginRegistry
	return !j.registry || !made
}

func (j *job) lookup(ctx context.Context, record images.Image) (found, error) {
	record.Name = j.named.String() // as the job knows it
	store := j.Client.ContentStore()
	if err := j.pin(ctx, record.Target.Digest); err != nil {
		return found{}, err
	}
	manifest, err := images.Manifest(ctx, store, record.Target, j.matcher)
	if errdefs.IsNotFound(err) {
		return found{others: platformsIn(ctx, store, record.Target)}, nil
	} else if err != nil {
		return found{}, err
	}
	config, err := readConfig(ctx, store, manifest.Config)
	if errdefs.IsNotFound(err) {
		return found{}, nil
	} else if err != nil {
		return found{}, err
	}
	if !runs(j.matcher, config.Platform) {
		return found{others: []string{platforms.FormatAll(config.Platform)}}, nil
	}

	f := found{image: client.NewImageWithPlatform(j.Client, record, j.matcher), unpacked: true}
	if len(config.RootFS.DiffIDs) == 0 {
		return f, nil
	}
	chain := identity.ChainID(config.RootFS.DiffIDs).String()
	if _, err = j.Client.SnapshotService(j.snapshotter()).Stat(ctx, chain); err == nil {
		return f, nil
	} else if !errdefs.IsNotFound(err) {
		return found{}, err
	}
	f.unpacked = false
	if complete, _, _, _, err := images.Check(ctx, store, record.Target, j.matcher); err != nil {
		return found{}, err
	} else if !complete {
		return found{}, nil
	}
	return f, nil
}

// pin makes the caller's lease hold the image: content refers to what it consists of and to its snapshots.
func (j *job) pin(ctx context.Context, target digest.Digest) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return j.Client.LeasesService().AddResource(ctx, leases.Lease{ID: id},
		leases.Resource{ID: target.String(), Type: "content"})
}

// unpacked returns the image after unpacking it where that is still to be done.
func (j *job) unpacked(ctx context.Context, f found) (client.Image, error) {
	if f.unpacked {
		return f.image, nil
	}
	ctx, unlock, err := j.exclusive(ctx, f.image.Target().Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	j.log.Printf("Unpacking image %s ...", j.ref)
	if err := f.image.Unpack(ctx, j.snapshotter()); err != nil {
		return nil, fmt.Errorf("unpack image %s: %w", j.ref, err)
	}
	return f.image, nil
}

// absence says what the node has instead of the image.
func (j *job) absence(f found) string {
	if len(f.others) == 0 {
		return "the node does not have it"
	}
	return fmt.Sprintf("the node has it only for %s, not for %s", strings.Join(f.others, ", "), j.wanted())
}

func readConfig(ctx context.Context, store content.Provider, desc ocispec.Descriptor) (ocispec.Image, error) {
	var config ocispec.Image
	b, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return config, err
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return config, fmt.Errorf("read image config %s: %w", desc.Digest, err)
	}
	config.Platform = platforms.Normalize(config.Platform)
	return config, nil
}

// runs tells whether an image of platform p may run; one that does not name its platform may.
func runs(m platforms.Matcher, p ocispec.Platform) bool {
	return p.Architecture == "" || p.OS == "" || m.Match(p)
}
