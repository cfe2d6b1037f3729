package runner

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner/job"
)

// Driver asks a GitLab for jobs and runs them.
type Driver struct {
	Config Config
	Timing Timing
	// Done, if set, is told of each job.
	Done func(Result)

	mu    sync.Mutex
	slots map[slot]struct{}
}

// Serve runs jobs until ctx ends or, unless it is 0, jobs have been run. Jobs
// under way are then finished.
func (d *Driver) Serve(ctx context.Context, jobs int) error {
	if len(d.Config.Runners) != 1 {
		return fmt.Errorf("expected one [[runners]], found %d", len(d.Config.Runners))
	}
	runner := d.Config.Runners[0]
	c := newClient(runner)
	d.slots = map[slot]struct{}{}
	free := make(chan struct{}, max(d.Config.Concurrent, 1))
	var running sync.WaitGroup
	defer running.Wait()
	for started := 0; jobs == 0 || started < jobs; {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		payload, err := c.request(ctx)
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, err)
		}
		if payload == nil {
			<-free
			if wait(ctx, seconds(d.Config.CheckInterval, 3*time.Second)) != nil {
				return nil
			}
			continue
		}
		started++
		running.Go(func() {
			defer func() { <-free }()
			d.serve(context.WithoutCancel(ctx), c, runner, payload)
		})
	}
	return nil
}

func (d *Driver) serve(ctx context.Context, c *client, runner Runner, payload *gitlab.Payload) {
	ctx, drop := context.WithCancel(ctx)
	defer drop()
	j := job.New(payload, runner.forJob())
	number, release := d.take(payload.JobInfo.ProjectID)
	defer release()
	j.ConcurrentID, j.ProjectConcurrentID = number.id, number.ofProject
	correlation := make([]byte, 16)
	_, _ = rand.Read(correlation) // never fails
	j.Correlation = hex.EncodeToString(correlation)

	cancel := &canceler{}
	t := newTrace(c, payload, cancel.cancel, drop)
	if s, err := c.update(ctx, payload, "running", nil); err == nil {
		t.heed(s)
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { t.watch(watchCtx) })
	result := runJob(ctx, runner, j, t, d.Timing, cancel)
	stopWatch()
	watching.Wait()
	if err := t.finish(context.WithoutCancel(ctx), &result); err != nil {
		fmt.Fprintf(os.Stderr, "job %d: %v\n", payload.ID, err)
	}
	if d.Done != nil {
		d.Done(result)
	}
}

// slot is what tells a job under way from the others.
type slot struct {
	id        int // among all
	project   int64
	ofProject int // among those of the project
}

// take finds the lowest numbers that no other job has.
func (d *Driver) take(project int64) (s slot, release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := func(same func(slot) bool) bool {
		return slices.ContainsFunc(slices.Collect(maps.Keys(d.slots)), same)
	}
	s.project = project
	for taken(func(o slot) bool { return o.id == s.id }) {
		s.id++
	}
	for taken(func(o slot) bool { return o.project == project && o.ofProject == s.ofProject }) {
		s.ofProject++
	}
	d.slots[s] = struct{}{}
	return s, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.slots, s)
	}
}
