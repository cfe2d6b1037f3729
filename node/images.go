package node

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/imagegc"
)

// imageUses takes note of what jobs use of the node's images.
type imageUses interface {
	Use(ctx context.Context, job string, i images.Image) error
	Expect(job, nameOrDigest string)
}

// keptAnyway is how long an image is kept after its last use when room is
// short: the next stage of a pipeline is about to use it.
const keptAnyway = time.Hour

// openImages makes what looks after the node's images.
func (d *daemon) openImages() {
	c := d.config.Images
	d.images = imagegc.New(imagegc.Config{
		Client: d.client, Snapshotter: d.runtime.Containerd().Snapshotter, Disk: d.engine.Generations().Layers(),
		Policy:   imagePolicy(c),
		Jobs:     func() []api.Job { return d.jobs.List() },
		Projects: d.journal.Projects,
	})
}

func imagePolicy(c config.Images) imagegc.Policy {
	return imagegc.Policy{
		MaxSize: int64(c.MaxSize), MinFree: int64(c.MinFree), MaxAge: time.Duration(c.MaxAge), MinAge: keptAnyway,
	}
}

// collectImages removes the images that the node is not to keep.
func (d *daemon) collectImages(ctx context.Context) {
	removed, err := d.images.Collect(ctx)
	for _, i := range removed {
		d.log.WithFields(logrus.Fields{
			"image": i.Name, "reason": i.Reason, "used": i.Used.UTC().Format(time.RFC3339), "freed": units.BytesSize(float64(i.Unique)),
		}).Info("removed an image")
	}
	if err != nil && ctx.Err() == nil {
		d.log.WithError(err).Warn("cannot remove images")
	}
}
