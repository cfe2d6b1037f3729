package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// killTimeout bounds the wait for a killed process to be reaped. It is long
// since a process in uninterruptible sleep, on a slow disk say, takes its time.
const killTimeout = 30 * time.Second

// Kill ends all processes of a job and returns when none runs any more. It
// is the part of Remove that others wait for.
func Kill(ctx context.Context, client *containerd.Client, job string) error {
	return each(ctx, client, job, func(ctx context.Context, c containerd.Container) error {
		task, err := c.Task(ctx, nil)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("load task %s: %w", c.ID(), err)
		}
		return kill(ctx, task)
	})
}

// Remove ends and deletes all that a job has in containerd: tasks,
// containers, their snapshots, and the lease. It is idempotent, and goes on
// past what fails so that one stuck container does not keep the others.
func Remove(ctx context.Context, client *containerd.Client, job string) error {
	err := errors.Join(each(ctx, client, job, remove), removeShims(ctx, client, job), removeBundles(ctx, client, job))
	if leaseErr := client.LeasesService().Delete(ctx, leases.Lease{ID: LeaseName(job)}); leaseErr != nil && !errdefs.IsNotFound(leaseErr) {
		err = errors.Join(err, fmt.Errorf("delete lease of job %s: %w", job, leaseErr))
	}
	return err
}

// each does the same to all containers of a job at once.
func each(ctx context.Context, client *containerd.Client, job string, do func(context.Context, containerd.Container) error) error {
	containers, err := client.Containers(ctx, fmt.Sprintf("labels.%q==%s", JobLabel, job))
	if err != nil {
		return fmt.Errorf("list containers of job %s: %w", job, err)
	}
	var group sync.WaitGroup
	errs := make([]error, len(containers))
	for i, c := range containers {
		group.Go(func() { errs[i] = do(ctx, c) })
	}
	group.Wait()
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
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete task %s: %w", task.ID(), err)
		}
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", c.ID(), err)
	}
	return nil
}

// kill ends a task and waits for that. The kernel ends all processes of a
// container with its first, so no program need be started to find them.
func kill(ctx context.Context, task containerd.Task) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	exited, err := task.Wait(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for task %s: %w", task.ID(), err)
	}
	if err := killInit(ctx, task); err != nil {
		return fmt.Errorf("kill task %s: %w", task.ID(), err)
	}
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill task %s: it still runs %v after SIGKILL: %w", task.ID(), killTimeout, context.Cause(ctx))
	}
}

// killInit kills a task's first process. That it was this task's is made
// sure of between taking hold of the process and killing it.
func killInit(ctx context.Context, task containerd.Task) error {
	fd, err := unix.PidfdOpen(int(task.Pid()), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", task.Pid(), err)
	}
	defer unix.Close(fd)
	status, err := task.Status(ctx)
	if errdefs.IsNotFound(err) || (err == nil && status.Status == containerd.Stopped) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
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
	running, err := shims(client)
	if err != nil {
		return nil, err
	}
	for _, s := range running {
		if job := jobOf(s.container); job != "" {
			jobs = append(jobs, job)
		}
	}
	b, err := bundlesOf(client)
	if err != nil {
		return nil, err
	}
	left, err := b.containers("")
	if err != nil {
		return nil, err
	}
	for _, id := range left {
		jobs = append(jobs, jobOf(id))
	}
	slices.Sort(jobs)
	return slices.Compact(jobs), nil
}
