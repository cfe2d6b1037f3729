package node

import (
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/journal"
)

// Admit gives a job a berth, waiting for one if need be. Progress is called
// with a line now and then. What was made is undone when it fails.
func (j *Jobs) Admit(ctx context.Context, r api.AdmitRequest, progress func(string)) (*api.Admission, error) {
	j.attending.Add(1)
	defer j.attending.Done()
	profile, err := j.profile(r.Profile)
	if err != nil {
		return nil, err
	}
	grant, err := profile.Grant(r.Profile, r.Request)
	if err != nil {
		return nil, err
	}
	if _, err := gpu.NewClaim(r.Request.Job, r.Profile, profile.GPU, r.Request.Variables); err != nil {
		return nil, err // rather than after a wait
	}
	run := runner{r.Runner, r.TempDir}
	if err := run.check(); err != nil {
		return nil, err
	}
	e, err := j.claim(ctx, journal.Record{
		Job: api.Job{
			Key:      r.Request.Job.Key(),
			Identity: r.Request.Job,
			Profile:  r.Profile,
			State:    api.StateWaiting,
			Image:    grant.Build.Name,
			Runner:   r.Runner,
			Since:    time.Now().UTC(),
		},
		Caller:  r.Caller,
		TempDir: r.TempDir,
		Boot:    j.settings.Boot,
	})
	if err != nil {
		return nil, err
	}
	admitted := false
	defer func() {
		close(e.settled)
		if !admitted { // after a panic, too
			j.mu.Lock()
			if e.life.Err() == nil {
				e.record.Caller = api.Process{} // who is about to hear why
			}
			j.mu.Unlock()
			<-j.release(e, "it was not admitted").done
		}
	}()
	j.attend(e)

	// The caller may go away, the job's runner end, or someone release it.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.life, func() { cancel(context.Cause(e.life)) })()
	if err := j.queues[r.Profile].enter(ctx, e.record.Job, time.Duration(profile.Wait), progress); err != nil {
		return nil, fmt.Errorf("admit job %s: %w", e.key, err)
	}
	if err := j.guard(func() error { return j.admitToGPUs(ctx, e, profile, r.Request, progress) }); err != nil {
		return nil, fmt.Errorf("admit job %s: %w", e.key, err)
	}
	called := time.Now()
	if err := j.furnish(ctx, e, grant, r.Request); err != nil {
		return nil, fmt.Errorf("admit job %s: %w", e.key, err)
	}
	if err := j.guard(func() error { return j.admitToCaches(ctx, e, r.Request, progress) }); err != nil {
		return nil, fmt.Errorf("admit job %s: %w", e.key, err)
	}
	if err := j.Builds.Serve(e.record); err != nil {
		return nil, fmt.Errorf("admit job %s: %w", e.key, err)
	}
	admitted = true
	j.log.WithFields(logrus.Fields{
		"job":     e.key,
		"project": r.Request.Job.Project,
		"profile": r.Profile,
		"waited":  called.Sub(e.record.Job.Since).Round(time.Millisecond),
		"took":    time.Since(called).Round(100 * time.Microsecond),
	}).Info("admitted a job")
	a := e.record.Admission
	return &a, nil
}

// builds says where a job finds its BuildKit.
func (j *Jobs) builds(dirs api.Dirs, g *executor.Grant) api.Builds {
	if !g.Profile.Builds.Enabled {
		return api.Builds{}
	}
	return buildsOf(dirs.Job)
}

// claim makes the entry of a job that asks for a berth. A job of the same key
// that is there already, since prepare is tried again or its runner ended,
// is released first.
func (j *Jobs) claim(ctx context.Context, r journal.Record) (*job, error) {
	for {
		j.mu.Lock()
		old := j.jobs[r.Job.Key]
		if old == nil {
			e := j.add(r)
			j.watchers.publish(api.Event{Job: r.Job})
			j.mu.Unlock()
			return e, nil
		}
		state := old.record.Job.State
		j.mu.Unlock()
		again := old.runner == runner{r.Job.Runner, r.TempDir}
		if state != api.StateReleasing && !again && old.runner.ended() == "" {
			return nil, fmt.Errorf("job %s is on this node already, %s for gitlab-runner process %d: wait until that one ends, or release it: %w",
				old.key, state, old.runner.PID, errdefs.ErrAlreadyExists)
		}
		if err := j.release(old, "it is prepared again").wait(ctx); err != nil {
			return nil, fmt.Errorf("release job %s before it is prepared again: %w", old.key, err)
		}
	}
}

// furnish makes all that a job gets. The journal knows of it before: of the
// network by name, of the rest by the job's key.
func (j *Jobs) furnish(ctx context.Context, e *job, grant *executor.Grant, request executor.Request) error {
	dirs := j.Dirs.of(e.key, request.Job.CacheKey())
	dirs.Registries, dirs.DockerConfig = j.settings.Registries, j.settings.DockerConfig
	// It was made before it was asked for, or is removed by name at the next
	// start if berthd ends right here.
	n, err := j.Networks.Take(ctx, e.key, e.record.Job.Profile)
	if err != nil {
		return err
	}
	record := e.record
	record.Network = n
	record.Job.State = api.StateAdmitted
	record.Admission = api.Admission{
		Job:        e.key,
		Profile:    record.Job.Profile,
		Grant:      *grant,
		Containerd: j.settings.Containerd,
		Lease:      container.LeaseName(e.key),
		Cgroup:     path.Join(j.settings.Cgroup, e.key),
		Dirs:       dirs,
		Builds:     j.builds(dirs, grant),
		Network:    api.Network{Netns: n.Netns, Address: n.Gateway, Services: make([]api.Endpoint, len(grant.Services))},
		GPUs:       record.Admission.GPUs,
	}
	record.Admission.Docker = j.dockerOf(record.Admission)
	j.mu.Lock()
	e.holds = true
	e.record.Network = n
	j.mu.Unlock()
	if err := j.Journal.Put(record); err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	start := func(f func() error) { group.Go(func() error { return j.guard(f) }) }
	start(func() error { return j.Containers.Hold(ctx, e.key) })
	start(func() error {
		if err := j.Dirs.create(e.key, dirs); err != nil {
			return err
		}
		return j.attachDocker(record)
	})
	start(func() error {
		if err := j.Cgroups.Create(record.Admission.Cgroup, grant.Limits); err != nil {
			return err
		}
		if g := record.Admission.GPUs; g != nil {
			return j.Cgroups.Withhold(record.Admission.Cgroup, g.Withheld)
		}
		return nil
	})
	start(func() error {
		for i, s := range grant.Services {
			if s.Docker {
				record.Admission.Network.Services[i] = api.Endpoint{Netns: n.Netns, Address: n.Gateway}
				continue
			}
			endpoint, err := j.Networks.Join(ctx, n, slices.Concat(s.Aliases, []string{s.Name})[0], i)
			if err != nil {
				return err
			}
			record.Admission.Network.Services[i] = api.Endpoint{Netns: endpoint.Netns, Address: endpoint.Addr}
		}
		return j.Names.Put(ctx, e.key, zoneOf(record.Admission))
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if len(grant.Services) > 0 {
		if err := j.Journal.Put(record); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.life.Err() != nil {
		return context.Cause(e.life) // released meanwhile
	}
	e.record = record
	j.watchers.publish(api.Event{Job: record.Job})
	return nil
}
