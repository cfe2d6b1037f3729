package node

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/gc"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/journal"
)

// Caches gives jobs their share of the node's caches.
type Caches interface {
	// Admit waits for what the job asks for; it saves the record before
	// anything is used.
	Admit(ctx context.Context, s cache.Start, say func(string)) (api.Caches, error)
	// Step is what one of the job's stages has to do with caches.
	Step(ctx context.Context, job, name string, step api.CacheStep, say func(string)) (*api.CacheResult, error)
	// Release gives back all that a job has; it is idempotent.
	Release(ctx context.Context, job string) error
}

// admitToCaches gives an admitted job its caches.
func (j *Jobs) admitToCaches(ctx context.Context, e *job, r executor.Request, progress func(string)) error {
	j.mu.Lock()
	a := e.record.Admission
	j.mu.Unlock()
	caches, err := j.Caches.Admit(ctx, cache.Start{
		Key: e.key, Request: r, Policy: a.Grant.Profile.Cache, Dir: a.Dirs.Job, Builds: a.Dirs.Builds,
		Save: j.saveCaches(e),
	}, progress)
	if err != nil || !caches.Serves {
		return err
	}
	record, err := j.change(e, func(r *journal.Record) { r.Admission.Caches = caches })
	if err != nil {
		return err
	}
	return j.Journal.Put(record)
}

// saveCaches writes what a job has of the caches to the journal.
func (j *Jobs) saveCaches(e *job) func(cache.Record) error {
	return func(c cache.Record) error {
		e.writing.Lock()
		defer e.writing.Unlock()
		record, err := j.change(e, func(r *journal.Record) { r.Caches = &c })
		if err != nil {
			return err
		}
		return j.Journal.Put(record)
	}
}

// change changes the record of a job that is not being released.
func (j *Jobs) change(e *job, change func(*journal.Record)) (journal.Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.life.Err() != nil {
		return e.record, context.Cause(e.life)
	}
	change(&e.record)
	return e.record, nil
}

// CacheStep is what one of a job's stages has to do with caches. It ends with
// the job.
func (j *Jobs) CacheStep(ctx context.Context, key, name string, step api.CacheStep, progress func(string)) (*api.CacheResult, error) {
	j.attending.Add(1)
	defer j.attending.Done()
	j.mu.Lock()
	e, err := j.admitted(key)
	j.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.life, func() { cancel(context.Cause(e.life)) })()
	switch name {
	case api.StepFetch, api.StepRefetch, api.StepCheckout, api.StepSave:
		return j.Caches.Step(ctx, key, name, step, progress)
	case api.StepFinish:
		// What still lives of the job must not write to what is published.
		if err := j.Containers.Kill(ctx, key); err != nil {
			return nil, err
		}
		return j.Caches.Step(ctx, key, name, step, progress)
	}
	return nil, fmt.Errorf("step %q is none of caches: %w", name, errdefs.ErrInvalidArgument)
}

// retakeCaches takes back what surviving jobs have, and finds out what the
// others had.
func retakeCaches(ctx context.Context, s *cache.Service, j *Jobs, alive, dead []journal.Record) error {
	var survivors []cache.Survivor
	add := func(r *journal.Record, ended bool) {
		if r.Caches == nil {
			return
		}
		key := r.Job.Key
		survivors = append(survivors, cache.Survivor{
			Key: key, Dir: r.Admission.Dirs.Job, Builds: r.Admission.Dirs.Builds, Record: *r.Caches, Ended: ended,
			Save: func(c cache.Record) error {
				j.mu.Lock()
				e := j.jobs[key]
				j.mu.Unlock()
				if e == nil { // it is about to be taken over
					r.Caches = &c
					return j.Journal.Put(*r)
				}
				return j.saveCaches(e)(c)
			},
		})
	}
	for i := range alive {
		add(&alive[i], false)
	}
	for i := range dead {
		add(&dead[i], true)
	}
	return s.Retake(ctx, survivors)
}

// collectInterval is how often it is looked whether images or caches have to
// go.
const collectInterval = 5 * time.Minute

// policyOf is what the node keeps.
func policyOf(c config.Cache) gc.Policy {
	p := gc.Policy{MaxBytes: int64(c.MaxSize), MinFree: int64(c.MinFree), MaxAge: time.Duration(c.MaxAge), Superseded: c.Rollback}
	if len(c.Shares) > 0 {
		p.Weight = func(project string) int { return c.Shares[project] }
	}
	return p
}

// collect removes what the node is not to keep, until ctx ends.
func (d *daemon) collect(ctx context.Context) {
	tick := time.NewTicker(collectInterval)
	defer tick.Stop()
	for {
		// Images first: most can be pulled again.
		d.collectImages(ctx)
		removed, err := d.keeper.Collect(ctx)
		if err != nil && ctx.Err() == nil {
			d.log.WithError(err).Warn("cannot make room among the caches")
		}
		for _, c := range removed {
			d.log.WithFields(logrus.Fields{"cache": c.Key, "project": c.Project, "kind": c.Kind, "size": c.Size}).Info("removed a cache")
		}
		d.forgetBuilds()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// measure measures what jobs have at /cache, which may take long, until ctx
// ends.
func (d *daemon) measure(ctx context.Context, of *cache.Directories) {
	tick := time.NewTicker(collectInterval)
	defer tick.Stop()
	for {
		if err := of.Measure(ctx); err != nil && ctx.Err() == nil {
			d.log.WithError(err).Warn("cannot measure what jobs have at /cache")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// forgetBuilds removes what is known of the builds of projects that build no
// more.
func (d *daemon) forgetBuilds() {
	age := time.Duration(d.config.Cache.MaxAge)
	if age <= 0 {
		return
	}
	forgotten, err := d.builders.service.Forget(age)
	for _, namespace := range forgotten {
		d.log.WithField("project", namespace).Info("forgot the build steps of a project that has not built for long")
	}
	if err != nil {
		d.log.WithError(err).Warn("cannot forget the build steps of projects")
	}
}

// cachesDir is the cache engine's. It belongs to containerd's namespace.
func cachesDir(root string) string { return filepath.Join(root, "buildkit") }
