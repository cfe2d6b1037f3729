package cachemount

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// waiter is the patience of one request, over all it waits for.
type waiter struct {
	r     Request
	began time.Time
	limit *time.Timer
	tick  *time.Ticker
	told  bool
}

// prompt is how long something may take before a job waits for it.
const prompt = 200 * time.Millisecond

func newWaiter(r Request) *waiter {
	if r.Interval <= 0 {
		r.Interval = 15 * time.Second
	}
	if r.Progress == nil {
		r.Progress = func(Wait) {}
	}
	return &waiter{r: r, began: time.Now(), limit: time.NewTimer(max(r.Limit, prompt)), tick: time.NewTicker(r.Interval)}
}

func (w *waiter) stop() {
	w.limit.Stop()
	w.tick.Stop()
}

// wait waits for done, telling for whom.
func (w *waiter) wait(ctx context.Context, done <-chan struct{}, holders func() []Holder) error {
	select {
	case <-done:
		return nil
	default:
	}
	soon := time.NewTimer(prompt / 2)
	defer soon.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for cache %q: %w", w.r.Key, context.Cause(ctx))
		case <-w.limit.C:
			return fmt.Errorf("%s; that is the limit: %w", Wait{w.r.Key, holders(), time.Since(w.began)}, errdefs.ErrUnavailable)
		case <-soon.C:
			if !w.told {
				w.told = true
				w.tell(holders())
			}
		case <-w.tick.C:
			w.tell(holders())
		}
	}
}

func (w *waiter) tell(holders []Holder) {
	w.r.Progress(Wait{Key: w.r.Key, Holders: holders, For: time.Since(w.began)})
}
