package builds

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
)

// LabelNamespace is on images that builds made, and says in which namespace.
const LabelNamespace = "berth.namespace"

// imageStore is the node's images as the builds of a job see and make them.
type imageStore struct {
	images.Store
	job    Job
	naming *sync.Mutex
	known  known
}

func (s *imageStore) name(name string) (string, error) {
	if s.job.Image == nil {
		return name, nil
	}
	kept, err := s.job.Image(name)
	if err != nil {
		return "", fmt.Errorf("name image %s: %w", name, err)
	}
	return kept, nil
}

// Get finds images that the job's namespace made. That an image is on the node does not mean that the job may read it:
// another may have pulled it by a password.
func (s *imageStore) Get(ctx context.Context, name string) (images.Image, error) {
	img, err := s.find(ctx, name)
	if err != nil {
		return images.Image{}, err
	}
	return img, s.known.markImage(ctx, img)
}

func (s *imageStore) find(ctx context.Context, name string) (images.Image, error) {
	if s.job.Find != nil {
		return s.job.Find(ctx, name)
	}
	kept, err := s.name(name)
	if err != nil {
		return images.Image{}, err
	}
	img, err := s.Store.Get(ctx, kept)
	if err != nil {
		return images.Image{}, err
	}
	if img.Labels[LabelNamespace] != s.job.Namespace {
		return images.Image{}, fmt.Errorf("no image %s of %s: %w", kept, s.job.Namespace, errdefs.ErrNotFound)
	}
	img.Name = name
	return img, nil
}

func (s *imageStore) own(img images.Image) (images.Image, error) {
	kept, err := s.name(img.Name)
	if err != nil {
		return images.Image{}, err
	}
	img.Name = kept
	img.Labels = maps.Clone(img.Labels)
	if img.Labels == nil {
		img.Labels = map[string]string{}
	}
	if s.job.Labels != nil {
		maps.Copy(img.Labels, s.job.Labels(kept))
	}
	img.Labels[LabelNamespace] = s.job.Namespace
	return img, nil
}

// Create makes an image that there is none of by that name.
func (s *imageStore) Create(ctx context.Context, img images.Image) (images.Image, error) {
	img, err := s.own(img)
	if err != nil {
		return images.Image{}, err
	}
	return s.Store.Create(ctx, img)
}

// Update replaces an image of the namespace's own.
func (s *imageStore) Update(ctx context.Context, img images.Image, _ ...string) (images.Image, error) {
	img, err := s.own(img)
	if err != nil {
		return images.Image{}, err
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	was, err := s.Store.Get(ctx, img.Name)
	if err != nil {
		return images.Image{}, err
	}
	// Names that the caller chose say themselves whose they are.
	if s.job.Image == nil && was.Labels[LabelNamespace] != s.job.Namespace {
		return images.Image{}, fmt.Errorf("image %s is there and was not built here: choose another name: %w", img.Name, errdefs.ErrPermissionDenied)
	}
	return s.Store.Update(ctx, img)
}

// List and Delete are nothing that a build does.
func (*imageStore) List(context.Context, ...string) ([]images.Image, error) {
	return nil, errdefs.ErrPermissionDenied
}

// Delete is refused.
func (*imageStore) Delete(context.Context, string, ...images.DeleteOpt) error {
	return errdefs.ErrPermissionDenied
}
