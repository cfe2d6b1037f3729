package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
)

// fetch asks the registry for the image, and downloads what the node lacks of it. Each job asks for itself, with
// its own credentials: that another one may read the image gives it no right to.
//
// It uses the client's Pull: errors of containerd's transfer service tell no HTTP status, which is what decides
// whether to try other credentials.
func (j *job) fetch(ctx context.Context) (client.Image, error) {
	of := ""
	if j.platform != "" {
		of = " for platform " + j.platform
	}
	j.log.Printf("Pulling docker image %s%s ...", j.ref, of)

	registry := newRegistry(j)
	resolved, err := registry.resolve(ctx)
	if err != nil {
		return nil, registry.explain(err)
	}
	target := resolved.desc.Digest
	if resolved.stored, err = j.storedName(registry); err != nil {
		return nil, err
	}

	if f, err := j.find(ctx, target, resolved.stored); err != nil {
		return nil, err
	} else if f.unpacked {
		j.log.Printf("Image is up to date")
		return f.image, j.replace(ctx, resolved)
	}
	ctx, unlock, err := j.exclusive(ctx, target)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if f, err := j.find(ctx, target, resolved.stored); err != nil {
		return nil, err
	} else if f.unpacked {
		return f.image, j.replace(ctx, resolved)
	}

	labels, err := lastuse.Pulled(ctx, j.Client.ImageService(), resolved.stored, resolved.labels())
	if err != nil {
		return nil, err
	}
	progress := newProgress(j)
	stop := progress.start(ctx)
	img, err := j.Client.Pull(ctx, resolved.stored,
		client.WithResolver(resolved),
		client.WithPullLabels(labels),
		client.WithPlatformMatcher(j.matcher),
		client.WithPullUnpack,
		client.WithPullSnapshotter(j.snapshotter()),
		client.WithImageHandlerWrapper(func(h images.Handler) images.Handler {
			return progress.watch(j.checkPlatform(h))
		}),
	)
	stop()
	if err != nil {
		return nil, registry.explain(err)
	}
	progress.summary()
	record := img.Metadata()
	record.Name = j.named.String()
	return client.NewImageWithPlatform(j.Client, record, j.matcher), j.replace(ctx, resolved)
}

// storedName is the name that the image gets on the node. What the registry gives to the job's credentials is for the
// job's project alone.
func (j *job) storedName(r *registry) (string, error) {
	if j.scope == nil || !r.private() {
		return j.named.String(), nil
	}
	return j.scope.Own(j.named)
}

// replace makes the image be what the job's project has by its name, if it had another one by it.
func (j *job) replace(ctx context.Context, r *resolved) error {
	if j.scope == nil || r.stored != j.named.String() {
		return nil
	}
	for _, stored := range j.candidates() {
		record, err := j.Client.ImageService().Get(ctx, stored)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err == nil && (stored == r.stored || record.Target.Digest == r.desc.Digest) {
			return nil
		}
		own, nameErr := j.scope.Own(j.named)
		if err = errors.Join(err, nameErr); err == nil {
			record = images.Image{Name: own, Target: r.desc, Labels: lastuse.Put(map[string]string{names.OriginLabel: names.OriginRegistry}, own, time.Now())}
			if _, err = j.Client.ImageService().Create(ctx, record); errdefs.IsAlreadyExists(err) {
				_, err = j.Client.ImageService().Update(ctx, record)
			}
		}
		if err != nil {
			return fmt.Errorf("name image %s: %w", j.ref, err)
		}
		return nil
	}
	return nil
}

// exclusive waits until no other process works on the image, and returns a context with a lease for the work.
func (j *job) exclusive(ctx context.Context, target digest.Digest) (_ context.Context, unlock func(), _ error) {
	key := strings.Join([]string{j.named.String(), target.String(), j.wanted(), j.snapshotter()}, "\n")
	release, err := lock(ctx, j.LockDir, key, func() {
		j.log.Printf("Waiting for another job's pull of %s ...", j.ref)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", j.ref, err)
	}
	ctx, done, err := j.lease(ctx)
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("image %s: %w", j.ref, err)
	}
	return ctx, func() {
		if err := done(); err != nil {
			j.log.Printf("WARNING: image %s: %v", j.ref, err) // it expires in a day
		}
		release()
	}, nil
}

// checkPlatform stops a pull before it downloads the layers of an image that cannot run as the job wants it.
func (j *job) checkPlatform(h images.Handler) images.Handler {
	store := j.Client.ContentStore()
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h.Handle(ctx, desc)
		switch {
		case images.IsIndexType(desc.MediaType) && errdefs.IsNotFound(err):
			all := func(ocispec.Descriptor) bool { return true }
			if offered := platformsOf(ctx, store, desc, all); len(offered) > 0 {
				return nil, wrongPlatform{offered}
			}
		case images.IsConfigType(desc.MediaType) && err == nil:
			config, err := readConfig(ctx, store, desc)
			if err != nil {
				return nil, err
			}
			if !runs(j.matcher, config.Platform) {
				return nil, wrongPlatform{[]string{platforms.FormatAll(config.Platform)}}
			}
		}
		return children, err
	})
}

// wrongPlatform says for which platforms an image is, none of them the wanted one.
type wrongPlatform struct{ offered []string }

func (w wrongPlatform) Error() string { return "image is for " + strings.Join(w.offered, ", ") }
