package worktree

import (
	"context"
	"fmt"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Owner is a user and a group.
type Owner struct{ UID, GID int }

// Chown fills the empty layer dst with a copy of what a stack of layers shows, given from the uppermost down, in which
// to owns what from owned: for a job that runs as another user than those that wrote its cache. User and group are
// exchanged each for itself.
//
// All data is copied, but for what the file system can share: a hardlink would have the owner of the layers, which
// other jobs read.
func Chown(ctx context.Context, dst string, layers []string, from, to Owner) error {
	v, err := layer.OpenView(layers)
	if err != nil {
		return fmt.Errorf("change owner of layers: %w", err)
	}
	defer v.Close()
	owner := func(uid, gid int) (int, int) {
		if uid == from.UID {
			uid = to.UID
		}
		if gid == from.GID {
			gid = to.GID
		}
		return uid, gid
	}
	if err := v.Copy(ctx, dst, layer.CopyOptions{Owner: owner}); err != nil {
		return fmt.Errorf("change owner of layers: %w", err)
	}
	return nil
}
