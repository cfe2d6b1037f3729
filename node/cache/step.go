package cache

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/node/api"
)

// Step does what caches have to do at one of the job's stages.
func (s *Service) Step(ctx context.Context, job, name string, step api.CacheStep, say func(string)) (*api.CacheResult, error) {
	j, err := s.Job(job)
	if err != nil {
		return nil, err
	}
	switch name {
	case api.StepFetch:
		return j.Fetch(ctx, step, say)
	case api.StepRefetch:
		return j.Refetch(ctx)
	case api.StepCheckout:
		return j.Checkout(ctx, step, say)
	case api.StepSave:
		return j.Save(ctx, step)
	case api.StepFinish:
		return j.Finish(ctx, step.Success)
	}
	return nil, fmt.Errorf("step %q is none of caches: %w", name, errdefs.ErrInvalidArgument)
}

// Release gives back all that a job has. It is no error if that is nothing.
func (s *Service) Release(ctx context.Context, job string) error {
	j, err := s.Job(job)
	if err != nil {
		return nil
	}
	return j.Release(ctx)
}

// acquireLate gets a cache that could not be had before checkout, and mounts it where the containers have a place for
// it. Those inside of the working tree are mounted with that.
func (j *Job) acquireLate(ctx context.Context, m *Mount, content map[string]string, say func(string)) error {
	if !m.late() {
		return nil
	}
	if m.Source == "" {
		if err := j.acquireAtLast(ctx, m, content, say); err != nil {
			return err
		}
	}
	if m.Source == "" || m.Stub == "" {
		return nil
	}
	return j.bind(m)
}

func (j *Job) acquireAtLast(ctx context.Context, m *Mount, content map[string]string, say func(string)) error {
	id, err := resolve(m.Spec.ID, content)
	if err != nil {
		say(fmt.Sprintf("WARNING: cache %s: %v; the job goes on with an empty one", m.Spec.ID, err))
		j.substitute(m)
	} else if err := j.acquire(ctx, m, id, say); err != nil {
		return err
	}
	return j.own(m)
}

// Save publishes the job's `cache:`, in place of the runner's own script.
func (j *Job) Save(ctx context.Context, step api.CacheStep) (*api.CacheResult, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	result := &api.CacheResult{}
	err := j.saveEntries(ctx, step.Untracked, step.Success, func(line string) { result.Lines = append(result.Lines, line) })
	return result, err
}

// Finish publishes the caches of which the job has copies. Nothing of the job may live any more.
func (j *Job) Finish(ctx context.Context, success bool) (*api.CacheResult, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	result := &api.CacheResult{}
	// Those that lie in others first.
	for i := range slices.Backward(j.record.Mounts) {
		m := &j.record.Mounts[i]
		if m.Outcome != "" { // before a restart
			result.Lines = append(result.Lines, fmt.Sprintf("Cache %s: %s", m.Spec.ID, m.Outcome))
			continue
		}
		if m.Spec.Sharing != spec.Snapshot || m.Clone == nil || m.Spec.ReadOnly {
			continue
		}
		began := time.Now()
		text, err := j.publish(ctx, m, success)
		if err != nil {
			j.log.WithError(err).WithField("cache", m.Spec.ID).Warn("cannot publish a cache")
			text = "WARNING: not published: " + explain(err)
		}
		result.Lines = append(result.Lines, fmt.Sprintf("Cache %s: %s (%s)", m.Spec.ID, text, took(began)))
	}
	return result, j.write()
}

// publish makes a job's copy the next generation, if it may.
func (j *Job) publish(ctx context.Context, m *Mount, success bool) (string, error) {
	why := refusal(j.record.Identity, policyOf(j.record.Policy, m.Spec, m.Operator), j.record.Publish)
	switch {
	case !success:
		return "not published: the job has not succeeded", nil
	case why != "":
		return "not published: " + why, nil
	}
	c := j.clones[m.Clone.ID]
	if c == nil {
		if info, ok := j.became(*m.Clone); ok {
			m.Clone, m.Outcome = nil, published(info, true)
			return m.Outcome, nil
		}
		return "", fmt.Errorf("the job's copy is lost: %w", errdefs.ErrNotFound)
	}
	if m.Bound {
		if err := j.unbind(ctx, m); err != nil {
			return "", err
		}
	}
	info, changed, err := c.Publish(ctx)
	outcome := "not published: what the job began with was withdrawn meanwhile"
	if err == nil {
		outcome = published(info, changed)
	} else if !errdefs.IsAborted(err) {
		return "", err
	}
	id := m.Clone.ID
	m.Clone, m.Outcome = nil, outcome
	if !changed {
		// Who is killed between the two finds it still, or has noted that it is gone.
		if err := j.write(); err != nil {
			return "", err
		}
	}
	if err := j.discard(ctx, id); err != nil {
		j.log.WithError(err).Warn("cannot discard a clone")
	}
	return outcome, nil
}

// published says what became of a cache.
func published(g generation.Info, changed bool) string {
	if !changed {
		return fmt.Sprintf("unchanged, generation %d stays the newest", g.Number)
	}
	return fmt.Sprintf("published as generation %d, %s", g.Number, sizeText(g.Size))
}
