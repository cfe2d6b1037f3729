// Package lastuse notes on an image when it was last used, and by that whose
// it is: what has such a note, Berth has pulled or a job has made, and Berth
// may remove it; what has none, the node's operator put there.
//
// The note is a label of containerd's, so it goes with the name, survives what
// berthd does not, and can be written by berth as well as by berthd. It is
// light, since berth imports it. Who decides what goes is package imagegc.
package lastuse

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/docker/names"
)

// Label holds the time of the last use, in seconds since 1970.
const Label = "berth.used"

// Interval is how much later a use has to be than the one on note to be worth
// a write to the disk.
const Interval = 30 * time.Minute

// Ours tells whether the image is there by Berth.
func Ours(i images.Image) bool {
	_, noted := i.Labels[Label]
	return noted || strings.HasPrefix(i.Name, names.Domain+"/")
}

// Of is when the image was last used, less Interval at most.
func Of(i images.Image) time.Time {
	if seconds, err := strconv.ParseInt(i.Labels[Label], 10, 64); err == nil {
		return time.Unix(seconds, 0)
	}
	return i.UpdatedAt // the docker daemon has made it, and berthd was killed before it took note
}

// Put adds the note of a use just now to the labels of an image.
func Put(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[Label] = strconv.FormatInt(time.Now().Unix(), 10)
	return labels
}

// Pulled are the labels for a name that is about to be pulled. One that the
// operator put there stays his.
func Pulled(ctx context.Context, store images.Store, name string, labels map[string]string) (map[string]string, error) {
	there, err := store.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return nil, fmt.Errorf("look up image %s: %w", name, err)
	case !Ours(there):
		return labels, nil
	}
	return Put(labels), nil
}

// Touch notes a use of the image just now. The error is one of not found if
// the image has been removed meanwhile.
func Touch(ctx context.Context, store images.Store, i images.Image) error {
	if !Ours(i) || time.Since(Of(i)) < Interval {
		return nil
	}
	i.Labels = Put(nil)
	if _, err := store.Update(ctx, i, "labels."+Label); err != nil {
		return fmt.Errorf("note the use of image %s: %w", i.Name, err)
	}
	return nil
}
