package builds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// sweep removes what builds left that no process goes on with: containers, mounts and files.
func (s *Service) sweep(ctx context.Context) error {
	if err := s.removeContainers(ctx, ""); err != nil {
		return err
	}
	if err := mount.UnmountRecursive(s.tmpDir(), unix.MNT_DETACH); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount what builds left: %w", err)
	}
	for _, dir := range []string{s.tmpDir(), s.jobDir("")} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what builds left: %w", err)
		}
	}
	return nil
}

// removeContainers kills and removes the containers of RUN steps whose id begins so.
func (s *Service) removeContainers(ctx context.Context, prefix string) error {
	list, err := s.client.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list containers of builds: %w", err)
	}
	var errs []error
	for _, c := range list {
		if strings.HasPrefix(c.ID(), prefix) {
			errs = append(errs, removeContainer(ctx, c))
		}
	}
	return errors.Join(errs...)
}

func removeContainer(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("find task of RUN step %s: %w", c.ID(), err)
	default:
		_ = task.Kill(ctx, syscall.SIGKILL, containerd.WithKillAll)
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("kill RUN step %s: %w", c.ID(), err)
		}
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container of RUN step %s: %w", c.ID(), err)
	}
	return nil
}
