package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/api"
)

const (
	// progressInterval is the least time between two lines about a waiting
	// job's place.
	progressInterval = 3 * time.Second
	// holdersNamed is how many of the running jobs such a line names.
	holdersNamed = 5
)

// queue lets as many jobs of a profile run at a time as it allows, first come
// first served.
type queue struct {
	profile string
	limit   int // 0 is none

	mu      sync.Mutex
	holders []api.Job
	waiting []*ticket
}

// ticket is a waiting job's place in a queue.
type ticket struct {
	job     api.Job
	called  chan struct{} // closed when the job has become a holder
	changed chan struct{} // filled when its place or the holders change
}

// enter waits until the job may run, and says meanwhile where it stands.
func (q *queue) enter(ctx context.Context, job api.Job, patience time.Duration, progress func(string)) error {
	t := q.join(job)
	var (
		since    = time.Now()
		timeout  = time.NewTimer(patience)
		lastLine time.Time
		nextLine <-chan time.Time
	)
	defer timeout.Stop()
	for {
		select {
		case <-t.called:
			return nil
		case <-t.changed:
			if nextLine == nil {
				nextLine = time.After(time.Until(lastLine.Add(progressInterval)))
			}
		case <-nextLine:
			nextLine, lastLine = nil, time.Now()
			if place := q.describe(t); place != "" {
				progress("Waiting for a berth: " + place)
			}
		case <-ctx.Done():
			q.leave(job.Key)
			return context.Cause(ctx)
		case <-timeout.C:
			place := q.describe(t)
			if place == "" {
				return nil // called just now
			}
			q.leave(job.Key)
			return fmt.Errorf("no berth became free in %v: %s: %w", time.Since(since).Round(time.Second), place, errdefs.ErrUnavailable)
		}
	}
}

// join puts a job at the end of the queue.
func (q *queue) join(job api.Job) *ticket {
	t := &ticket{job: job, called: make(chan struct{}), changed: make(chan struct{}, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, t)
	q.advance()
	return t
}

// hold counts a job that runs already, be it over the limit.
func (q *queue) hold(job api.Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.holders = append(q.holders, job)
}

// leave removes a job, whether it waits, runs, or is not there.
func (q *queue) leave(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.holders = slices.DeleteFunc(q.holders, func(j api.Job) bool { return j.Key == key })
	q.waiting = slices.DeleteFunc(q.waiting, func(t *ticket) bool { return t.job.Key == key })
	q.advance()
}

// advance calls whom there is room for, and tells the others.
func (q *queue) advance() {
	for len(q.waiting) > 0 && (q.limit == 0 || len(q.holders) < q.limit) {
		first := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.holders = append(q.holders, first.job)
		close(first.called)
	}
	for _, t := range q.waiting {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
}

// describe says where a job stands; nothing once it was called.
func (q *queue) describe(t *ticket) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	place := slices.Index(q.waiting, t)
	if place < 0 {
		return ""
	}
	var names []string
	for _, j := range q.holders[:min(len(q.holders), holdersNamed)] {
		// Job logs may be public: other projects are not named in them.
		whose := "another project"
		if j.Identity.ProjectKey() == t.job.Identity.ProjectKey() {
			whose = j.Identity.Project
		}
		names = append(names, fmt.Sprintf("job %d (%s)", j.Identity.ID, whose))
	}
	if more := len(q.holders) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("place %d of %d; profile %q runs %d at a time, now: %s",
		place+1, len(q.waiting), q.profile, q.limit, strings.Join(names, ", "))
}
