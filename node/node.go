package node

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// errShutdown ends what waits when berthd ends.
var errShutdown = fmt.Errorf("berthd is being stopped or restarted: %w", errdefs.ErrUnavailable)
