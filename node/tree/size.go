package tree

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Size is what a directory and all that is in it take on the disk; a file of several names counts once. It is an error
// (errdefs.ErrAborted) if somebody moves directories meanwhile.
func Size(ctx context.Context, dir string) (int64, error) {
	var bytes int64
	seen := map[node]struct{}{}
	err := walk(ctx, dir, visitor{entry: func(_ *os.File, _ string, st *unix.Statx_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if _, again := seen[nodeOf(st)]; again {
				return nil
			}
			seen[nodeOf(st)] = struct{}{}
		}
		bytes += int64(st.Blocks) * 512
		return nil
	}})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return bytes, nil
}
