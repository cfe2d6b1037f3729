package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// killTimeout bounds the wait for a killed process to be reaped. It is long
// since a process in uninterruptible sleep, on a slow disk say, takes its time.
const killTimeout = 30 * time.Second

// Remove ends and deletes all that a job has in containerd: tasks,
// containers, their snapshots, and the lease. It is idempotent, and goes on
// past what fails so that one stuck container does not keep the others.
func Remove(ctx context.Context, client *containerd.Client, job string) error {
	containers, err := client.Containers(ctx, fmt.Sprintf("labels.%q==%s", JobLabel, job))
	if err != nil {
		return fmt.Errorf("list containers of job %s: %w", job, err)
	}
	var group errgroup.Group
	errs := make([]error, len(containers))
	for i, c := range containers {
		group.Go(func() error {
			errs[i] = remove(ctx, c)
			return nil
		})
	}
	_ = group.Wait()
	if err := client.LeasesService().Delete(ctx, leases.Lease{ID: LeaseName(job)}); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("delete lease of job %s: %w", job, err))
	}
	return errors.Join(errs...)
}

// remove ends one container. Its task may be in any state, created or dying.
func remove(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("load task %s: %w", c.ID(), err)
	default:
		if err := kill(ctx, task); err != nil {
			return err
		}
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", c.ID(), err)
	}
	return nil
}

func kill(ctx context.Context, task containerd.Task) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	exited, err := task.Wait(ctx)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("wait for task %s: %w", task.ID(), err)
	}
	if err == nil {
		err := task.Kill(ctx, syscall.SIGKILL, containerd.WithKillAll)
		switch {
		case errdefs.IsNotFound(err):
			// It has exited already; what is left is to delete it.
		case err != nil && !errdefs.IsFailedPrecondition(err):
			return fmt.Errorf("kill task %s: %w", task.ID(), err)
		default:
			select {
			case <-exited:
			case <-ctx.Done():
				return fmt.Errorf("kill task %s: it still runs %v after SIGKILL: %w", task.ID(), killTimeout, context.Cause(ctx))
			}
		}
	}
	if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete task %s: %w", task.ID(), err)
	}
	return nil
}

// Jobs lists the keys of the jobs that have anything in containerd.
func Jobs(ctx context.Context, client *containerd.Client) ([]string, error) {
	var jobs []string
	containers, err := client.Containers(ctx, fmt.Sprintf("labels.%q", JobLabel))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers {
		info, err := c.Info(ctx, containerd.WithoutRefreshedMetadata)
		if err != nil {
			return nil, fmt.Errorf("read container %s: %w", c.ID(), err)
		}
		jobs = append(jobs, info.Labels[JobLabel])
	}
	held, err := client.LeasesService().List(ctx, fmt.Sprintf("labels.%q", JobLabel))
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	for _, l := range held {
		jobs = append(jobs, l.Labels[JobLabel])
	}
	slices.Sort(jobs)
	return slices.Compact(jobs), nil
}
