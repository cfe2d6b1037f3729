package runner

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

const (
	defaultUpdateInterval = 3 * time.Second
	forceUpdateInterval   = 30 * time.Second // a sign of life from a silent job
	maxPatch              = 1 << 20
	finalTries            = 10
)

// trace collects a job's log and sends it, at intervals, in one goroutine. From
// the answers it learns that the job was cancelled.
type trace struct {
	client  *client
	payload *gitlab.Payload
	cancel  func() // of the script
	drop    func() // of everything

	mu   sync.Mutex
	text []byte

	sent     int
	lastSent time.Time
	interval time.Duration
	dropped  bool
}

func newTrace(c *client, payload *gitlab.Payload, cancel, drop func()) *trace {
	return &trace{client: c, payload: payload, cancel: cancel, drop: drop, lastSent: time.Now(), interval: defaultUpdateInterval}
}

// Write never fails and never waits for the server.
func (t *trace) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	return len(p), nil
}

// watch sends until ctx ends.
func (t *trace) watch(ctx context.Context) {
	for wait(ctx, t.interval) == nil && !t.dropped {
		// What is under way is not cut short: the server may already have it, and
		// would refuse it from finish.
		if t.send(context.WithoutCancel(ctx)) == nil && time.Since(t.lastSent) > forceUpdateInterval {
			if s, err := t.client.update(ctx, t.payload, "running", nil); err == nil {
				t.lastSent = time.Now()
				t.heed(s)
			}
		}
	}
}

// send sends one piece of what is new.
func (t *trace) send(ctx context.Context) error {
	t.mu.Lock()
	piece := t.text[t.sent:min(len(t.text), t.sent+maxPatch)]
	t.mu.Unlock()
	if len(piece) == 0 {
		return nil
	}
	s, err := t.client.appendTrace(ctx, t.payload, t.sent, piece)
	if err != nil {
		return err
	}
	t.heed(s)
	if s.code != http.StatusAccepted {
		return fmt.Errorf("append trace: status %d", s.code)
	}
	t.sent, t.lastSent = t.sent+len(piece), time.Now()
	return nil
}

func (t *trace) heed(s jobStatus) {
	if s.interval > 0 {
		t.interval = s.interval
	}
	switch {
	case s.dropped:
		t.dropped = true
		t.drop()
	case s.canceled:
		t.cancel()
	}
}

// finish sends the rest and the outcome, after watch has returned.
func (t *trace) finish(ctx context.Context, result *Result) error {
	var err error
	for try := 0; try < finalTries && !t.dropped; try++ {
		if try > 0 && wait(ctx, time.Second) != nil {
			break
		}
		for err = nil; err == nil && t.sent < len(t.text) && !t.dropped; {
			err = t.send(ctx)
		}
		if err != nil || t.dropped {
			continue
		}
		var s jobStatus
		if s, err = t.client.update(ctx, t.payload, result.State, result); err == nil && s.code == http.StatusOK {
			return nil
		}
	}
	return err
}
