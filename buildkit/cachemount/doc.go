// Package cachemount lends jobs the cache mounts of BuildKit: directories that a Dockerfile's RUN --mount=type=cache
// of the same id shares.
//
// A directory is shared by all who want it, locked by one after another, or private, one of a pool. BuildKit hands an
// empty one to whoever comes with another way of sharing than its holder's; here that is an error. It does not keep
// copies of a job's own: that is package generation.
package cachemount

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Key is an id in a namespace, as BuildKit's Dockerfile frontend puts them together. Nothing in an id leads out.
func Key(namespace, id string) string { return namespace + "/" + id }

// validateKey keeps out what BuildKit's index would take for another key's entry.
func validateKey(key string) error {
	if key == "" || strings.Contains(key, ":") {
		return fmt.Errorf("cache key %q is empty or has a colon: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}
