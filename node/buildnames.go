package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/node/docker"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/docker/proxy"
	"gitlab.com/berth-ci/berth/node/journal"
)

// dangling begins the names of images that docker has without one.
const dangling = "moby-dangling@"

// imageNames say by which names images of a job's builds are kept on the
// node, and where FROM finds those that are there: as for all else that the
// job does with images.
func (b *builders) imageNames(r journal.Record) (keep func(string) (string, error), find func(context.Context, string) (images.Image, error)) {
	key := r.Job.Key
	scope := names.Scope{Project: r.Job.Identity.ProjectKey(), Protected: r.Job.Identity.Protected}
	keep = func(name string) (string, error) {
		if id, ok := strings.CutPrefix(name, dangling); ok {
			if b.unnamed == nil {
				return "", fmt.Errorf("an image without a name is for docker, which the job has not: %w", errdefs.ErrFailedPrecondition)
			}
			return name, b.unnamed(key, id)
		}
		named, err := names.Parse(name)
		if err != nil {
			return "", err
		}
		stored, err := scope.Own(named)
		if err == nil {
			b.uses.Expect(key, stored)
		}
		return stored, err
	}
	find = func(ctx context.Context, name string) (images.Image, error) {
		named, err := names.Parse(name)
		if err != nil {
			return images.Image{}, err
		}
		for _, stored := range scope.Candidates(named) {
			image, err := b.images.Get(ctx, stored)
			if err == nil {
				err = b.uses.Use(ctx, key, image)
			}
			if errdefs.IsNotFound(err) {
				continue
			}
			image.Name = name
			return image, err
		}
		return images.Image{}, fmt.Errorf("image %s is not on the node: %w", name, errdefs.ErrNotFound)
	}
	return keep, find
}

// dockerBuilds are a job's builds by docker's API.
type dockerBuilds struct {
	of  *builders
	job string
}

// forDocker gives docker a job's builds.
func (b *builders) forDocker(job docker.Job) proxy.Builds { return dockerBuilds{b, job.Key} }

func (d dockerBuilds) builder() (*builder, error) {
	d.of.mu.Lock()
	defer d.of.mu.Unlock()
	j := d.of.jobs[d.job]
	if j == nil {
		return nil, fmt.Errorf("the job's profile has no builds: %w", errdefs.ErrUnavailable)
	}
	return j, nil
}

func (d dockerBuilds) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	j, err := d.builder()
	if err == nil {
		var e *builds.Endpoint
		if e, err = d.of.endpoint(j); err == nil {
			e.Handler().ServeHTTP(w, r)
			return
		}
	}
	http.Error(w, fmt.Sprintf("{\"message\":%q}", err.Error()), http.StatusServiceUnavailable)
}

func (d dockerBuilds) ServeConn(c net.Conn) {
	j, err := d.builder()
	if err == nil {
		if e, openErr := d.of.endpoint(j); openErr == nil {
			e.ServeConn(c)
			return
		}
	}
	c.Close()
}
