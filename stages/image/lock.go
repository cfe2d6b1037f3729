package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"
)

// lock keeps other processes from fetching what key names until release is called. It calls waiting once if
// another one is at it. A process that dies lets go of its locks, since the kernel holds them.
func lock(ctx context.Context, dir, key string, waiting func()) (release func(), _ error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make lock directory: %w", err)
	}
	path := filepath.Join(dir, digest.FromString(key).Encoded()+".lock")
	for {
		l := flock.New(path, flock.SetPermissions(0o600))
		held, err := l.TryLock()
		if err == nil && !held {
			if waiting != nil {
				waiting()
				waiting = nil
			}
			held, err = l.TryLockContext(ctx, 50*time.Millisecond)
		}
		if err == nil && held && current(l) {
			// Remove before unlocking: whoever opened the file before that sees that it is not current.
			return func() { _ = os.Remove(path); _ = l.Close() }, nil
		}
		_ = l.Close()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// current tells whether the locked file is still the one that its path names.
func current(l *flock.Flock) bool {
	locked, err := l.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(l.Path())
	return err == nil && os.SameFile(locked, named)
}
