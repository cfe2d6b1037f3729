package node

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/journal"
)

// releaseTimeout bounds one attempt to release a job. It is long, since
// killed processes may wait for a slow disk.
const releaseTimeout = 5 * time.Minute

// errReleased ends the admission of a job that is released.
var errReleased = fmt.Errorf("it was released: %w", errdefs.ErrAborted)

// attempt is one attempt to release a job, for all who ask meanwhile.
type attempt struct {
	// stopped is closed when nothing of the job runs any more.
	stopped chan struct{}
	// done is closed when nothing is left of it, or after a failure.
	done chan struct{}
	err  error // valid when done
}

// wait waits until nothing is left of the job.
func (a *attempt) wait(ctx context.Context) error {
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("%w: the release goes on", context.Cause(ctx))
	}
}

// waitStopped waits until nothing of the job runs.
func (a *attempt) waitStopped(ctx context.Context) error {
	select {
	case <-a.stopped:
		return nil
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("%w: the release goes on", context.Cause(ctx))
	}
}

// Release ends a job and removes all it has. A job that is not on the node
// may have left something all the same: that goes, too.
func (j *Jobs) Release(ctx context.Context, key string) error {
	return j.releaseUntil(ctx, key, (*attempt).wait)
}

// End is Release for those who need not wait for its second half: nothing of
// the job runs when it returns, and what it had is removed soon after.
func (j *Jobs) End(ctx context.Context, key string) error {
	return j.releaseUntil(ctx, key, (*attempt).waitStopped)
}

func (j *Jobs) releaseUntil(ctx context.Context, key string, wait func(*attempt, context.Context) error) error {
	if !keyPattern.MatchString(key) {
		return fmt.Errorf("job %q: expected a job's key, such as j4711-0123abcd: %w", key, errdefs.ErrInvalidArgument)
	}
	e, _ := j.find(key)
	if err := wait(j.release(e, ""), ctx); err != nil {
		return fmt.Errorf("release job %s: %w", key, err)
	}
	return nil
}

// find gives a job's entry, and makes one for a job that is not on the node,
// so that it is not admitted while what it left is removed.
func (j *Jobs) find(key string) (e *job, unknown bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.jobs[key]; e != nil {
		return e, false
	}
	return j.settle(journal.Record{Job: api.Job{Key: key, State: api.StateReleasing, Since: time.Now().UTC()}}), true
}

// release starts to release a job, or joins the attempt that is under way or
// has succeeded. It does not depend on who asks. A failure is logged, and
// Sweep tries again.
func (j *Jobs) release(e *job, reason string) *attempt {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.releasing != nil {
		return e.releasing
	}
	a := &attempt{stopped: make(chan struct{}), done: make(chan struct{})}
	e.releasing = a
	j.attending.Go(func() {
		defer close(a.done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(j.life), releaseTimeout)
		defer cancel()
		log := j.log.WithField("job", e.key)
		if reason != "" {
			log = log.WithField("reason", reason)
		}
		a.err = j.guard(func() error { return j.finish(ctx, e, reason, a.stopped) })
		if a.err == nil {
			log.Info("released a job")
			return
		}
		log.WithError(a.err).Error("cannot release a job, will try again")
		j.mu.Lock()
		e.releasing = nil
		j.mu.Unlock()
	})
	return a
}

// finish ends a job in whatever state it is, and closes stopped on the way.
func (j *Jobs) finish(ctx context.Context, e *job, reason string, stopped chan<- struct{}) error {
	cause := errReleased
	if reason != "" {
		cause = fmt.Errorf("%s: %w", reason, errReleased)
	}
	e.end(cause)
	<-e.settled
	e.writing.Lock()
	record, _ := j.update(e, reason, func(job *api.Job) error { job.State = api.StateReleasing; return nil })
	e.writing.Unlock()
	if e.holds {
		if err := j.Journal.Put(record); err != nil {
			// A disk that is full is no reason to keep what the job has.
			j.log.WithField("job", e.key).WithError(err).Warn("cannot note that a job is being released")
		}
		if err := endCaller(record.Caller); err != nil {
			return err
		}
		if err := errors.Join(j.Containers.Kill(ctx, e.key), j.Builds.End(ctx, e.key), j.endDocker(ctx, e.key)); err != nil {
			return err // what lives must keep its network and files
		}
		// A socket keeps the network namespace that it was made in.
		if err := j.Sockets.Release(ctx, e.key); err != nil {
			return err
		}
	}
	if q := j.queues[record.Job.Profile]; q != nil {
		q.leave(e.key)
	}
	close(stopped)
	if e.holds {
		if err := j.remove(ctx, record); err != nil {
			return err
		}
	} else if err := j.GPUs.Release(ctx, e.key); err != nil { // all that it got so far
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.jobs, e.key)
	e.record.Job.State = api.StateReleased
	j.watchers.publish(api.Event{Job: e.record.Job, Reason: reason})
	return nil
}

// remove removes all that a job has on the node, in the order in which one
// thing uses the other. It can be done again after a failure at any point.
func (j *Jobs) remove(ctx context.Context, r journal.Record) error {
	key := r.Job.Key
	// What docker containers have bound is the others' root.
	if err := j.removeDocker(ctx, key); err != nil {
		return err
	}
	if err := j.Containers.Remove(ctx, key); err != nil {
		return err
	}
	if err := j.Caches.Release(ctx, key); err != nil {
		return err // what is mounted must not be deleted with the directory
	}
	if err := errors.Join(
		j.Names.Remove(ctx, key),
		j.Networks.Release(ctx, r.Network),
		j.Cgroups.Remove(ctx, path.Join(j.settings.Cgroup, key)),
		j.Dirs.remove(key),
	); err != nil {
		return err
	}
	// Now that the job's cgroup is gone, nothing may be left on its GPUs.
	if err := j.GPUs.Release(ctx, key); err != nil {
		return err
	}
	return j.Journal.Delete(key)
}
