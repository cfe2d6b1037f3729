package worktree

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// patience is how long processes that were told to end may still hold a mount.
const patience = 2 * time.Second

// Mount mounts an overlay on a directory below the root that exists. empty is as for layer.Overlay's Mount.
// errdefs.ErrAlreadyExists if something is mounted there.
func (r *Root) Mount(path string, o layer.Overlay, empty string) error {
	if err := clean(path); err != nil {
		return err
	}
	fd, err := r.find(path)
	if err != nil {
		return fmt.Errorf("mount project directory: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	at, err := place(fd)
	if err != nil {
		return err
	}
	if at.root {
		return fmt.Errorf("mount project directory: something is mounted at %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err := o.MountOn(fd, empty); err != nil {
		return fmt.Errorf("mount project directory: %w", err)
	}
	return nil
}

// Mounted tells whether the overlay is mounted at a path, as after a restart.
func (r *Root) Mounted(path string, o layer.Overlay) (bool, error) {
	m, err := r.overlay(o)
	return m != nil && m.Mountpoint == filepath.Join(r.path, path), err
}

// Unmount undoes Mount. It is no error if it is not mounted. errdefs.ErrFailedPrecondition if a process of the job
// uses it, or a container has bound it on its own, or the job has moved it: it stays mounted then.
//
// When it returns nobody can write to the upper directory any more.
func (r *Root) Unmount(ctx context.Context, path string, o layer.Overlay) error {
	if err := clean(path); err != nil {
		return err
	}
	mounted, err := r.overlay(o)
	if err != nil {
		return fmt.Errorf("unmount project directory: %w", err)
	}
	if mounted != nil {
		if err := r.unmountOverlay(ctx, path, mounted); err != nil {
			return fmt.Errorf("unmount project directory: %w", err)
		}
	}
	// A mount may live on where nobody sees it, as on a file descriptor.
	return r.awaitUnused(ctx, o)
}

func (r *Root) unmountOverlay(ctx context.Context, path string, mounted *mountinfo.Info) error {
	if err := await(ctx, func() error { return unbound(mounted) }); err != nil {
		return err
	}
	return r.unmount(ctx, path, func(at where) bool { return at.mount == uint64(mounted.ID) })
}

func (r *Root) awaitUnused(ctx context.Context, o layer.Overlay) error {
	err := await(ctx, func() error {
		alive, err := layer.Alive(o.Upper)
		if err != nil {
			return backoff.Permanent(err)
		}
		if alive {
			return fmt.Errorf("a process holds it: %w", errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("unmount project directory: %w", err)
	}
	return nil
}

// escapes is how the kernel shows options.
var escapes = strings.NewReplacer(`\`, `\134`, ",", `\054`, "=", `\075`, " ", `\040`, "\t", `\011`, "\n", `\012`)

// overlay finds the overlay below the root, wherever it is; nil if it is not.
func (r *Root) overlay(o layer.Overlay) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(r.path))
	if err != nil {
		return nil, fmt.Errorf("find mounts: %w", err)
	}
	upper := "upperdir=" + escapes.Replace(o.Upper)
	for _, m := range mounts {
		if m.FSType != "overlay" {
			continue
		}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if option == upper {
				return m, nil
			}
		}
	}
	return nil, nil
}

// unmount unmounts what is at a path if it is ours, and waits a while for those that use it.
func (r *Root) unmount(ctx context.Context, path string, ours func(where) bool) error {
	s, err := r.spot(path)
	if err != nil {
		return moved(path, err)
	}
	defer s.close()
	return await(ctx, func() error {
		at, err := s.on()
		if err == nil && (!at.root || !ours(at)) {
			err = errors.New("something else is there")
		}
		if err != nil {
			return backoff.Permanent(moved(path, err))
		}
		// Nobody follows a link, and whatever comes to be there instead is a mount below the root, or none.
		err = unix.Unmount(inside(s.parent, s.name), unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%s is in use: %w", path, errdefs.ErrFailedPrecondition)
		case err != nil:
			return backoff.Permanent(moved(path, err))
		}
		return nil
	})
}

func moved(path string, err error) error {
	return fmt.Errorf("the mount is not at %s any more: %w: %w", path, err, errdefs.ErrFailedPrecondition)
}

// await repeats what may fail for a short time.
func await(ctx context.Context, call func() error) error {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 2*time.Millisecond, 100*time.Millisecond
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, call() },
		backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(patience))
	var permanent *backoff.PermanentError
	if errors.As(err, &permanent) {
		return permanent.Unwrap()
	}
	return err
}
