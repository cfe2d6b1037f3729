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

// Label holds the time of the last use, in seconds since 1970, and the name
// that was used: who gives an image another name, by docker or ctr, copies its
// labels.
const Label = "berth.used"

// Interval is how much later a use has to be than the one on note to be worth
// a write to the disk.
const Interval = 30 * time.Minute

// dangling begins docker's names for images that have lost theirs.
const dangling = "moby-dangling@"

// note reads the label.
func note(i images.Image) (at time.Time, noted bool) {
	text, name, _ := strings.Cut(i.Labels[Label], " ")
	seconds, err := strconv.ParseInt(text, 10, 64)
	lost := strings.HasPrefix(i.Name, dangling) && made(name)
	return time.Unix(seconds, 0), err == nil && (name == i.Name || lost)
}

// made tells whether a job made the name.
func made(name string) bool { return strings.HasPrefix(name, names.Domain+"/") }

// Ours tells whether the image is there by Berth.
func Ours(i images.Image) bool {
	_, noted := note(i)
	return noted || made(i.Name)
}

// Of is when the image was last used, less Interval at most.
func Of(i images.Image) time.Time {
	if at, noted := note(i); noted {
		return at
	}
	return i.UpdatedAt // the docker daemon has made it, and berthd was killed before it took note
}

// Put adds the note of a use to the labels of an image.
func Put(labels map[string]string, name string, at time.Time) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[Label] = strconv.FormatInt(at.Unix(), 10) + " " + name
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
	return Put(labels, name, time.Now()), nil
}

// Touch notes a use of the image just now. The error is one of not found if
// the image has been removed meanwhile.
func Touch(ctx context.Context, store images.Store, i images.Image) error {
	if !Ours(i) || time.Since(Of(i)) < Interval {
		return nil
	}
	i.Labels = Put(nil, i.Name, time.Now())
	if _, err := store.Update(ctx, i, "labels."+Label); err != nil {
		return fmt.Errorf("note the use of image %s: %w", i.Name, err)
	}
	return nil
}
