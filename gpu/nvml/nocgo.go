//go:build !cgo

package nvml

import (
	"fmt"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/gpu"
)

// Open fails: NVIDIA's library cannot be loaded without cgo.
func Open(Options) (gpu.Driver, error) {
	return nil, fmt.Errorf("this berth-gpu was built without cgo: %w", errdefs.ErrNotFound)
}
