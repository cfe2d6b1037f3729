package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

func queued(n int) api.Job {
	return api.Job{Key: fmt.Sprint(n), Identity: executor.Identity{ID: int64(n), Project: "group/project"}}
}

// TestQueueIsFair lets jobs come, go and lose patience at random, and looks
// that nobody is overtaken and the room always used, never exceeded.
func TestQueueIsFair(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 0))
		q := &queue{profile: "default", limit: 1 + random.IntN(4)}
		var waiting []*ticket // in order of arrival
		var running []string
		called := func(t *ticket) bool {
			select {
			case <-t.called:
				return true
			default:
				return false
			}
		}
		for n := range 300 {
			switch {
			case random.IntN(2) == 0:
				waiting = append(waiting, q.join(queued(n)))
			case random.IntN(3) == 0 && len(waiting) > 0:
				i := random.IntN(len(waiting))
				q.leave(waiting[i].job.Key)
				waiting = slices.Delete(waiting, i, i+1)
			case len(running) > 0:
				i := random.IntN(len(running))
				q.leave(running[i])
				running = slices.Delete(running, i, i+1)
			}
			for len(waiting) > 0 && called(waiting[0]) {
				running = append(running, waiting[0].job.Key)
				waiting = waiting[1:]
			}
			require.False(t, slices.ContainsFunc(waiting, called), "seed %d: overtaken", seed)
			require.LessOrEqual(t, len(running), q.limit)
			require.True(t, len(waiting) == 0 || len(running) == q.limit, "seed %d: room left while jobs wait", seed)
		}
	}
}

func TestQueueSaysWhereAJobStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{profile: "gpu", limit: 1}
		start := time.Now()
		require.NoError(t, q.enter(t.Context(), queued(1), 0, nil), "there is room: no wait, no word")

		type line struct {
			at   time.Duration
			text string
		}
		lines := make(chan line, 100)
		done := make(chan error, 1)
		q.join(queued(2))
		go func() {
			done <- q.enter(t.Context(), queued(3), time.Hour, func(s string) { lines <- line{time.Since(start), s} })
		}()
		synctest.Wait()
		require.Equal(t, line{0, `Waiting for a berth: place 2 of 2; profile "gpu" runs 1 at a time, now: job 1 (group/project)`}, <-lines)

		for n := range 20 { // a burst makes one line, when it is time
			q.join(queued(10 + n))
		}
		time.Sleep(time.Minute)
		require.Equal(t, line{progressInterval, `Waiting for a berth: place 2 of 22; profile "gpu" runs 1 at a time, now: job 1 (group/project)`}, <-lines)
		require.Empty(t, lines)

		q.leave("1")
		synctest.Wait()
		require.Equal(t, line{time.Minute, `Waiting for a berth: place 1 of 21; profile "gpu" runs 1 at a time, now: job 2 (group/project)`}, <-lines)
		q.leave("2")
		require.NoError(t, <-done)
		require.Empty(t, lines)
	})
}

func TestQueueNamesFewHolders(t *testing.T) {
	q := &queue{profile: "default", limit: 1}
	for n := range 8 {
		q.hold(queued(n)) // over the limit, as after a change of the configuration
	}
	require.Contains(t, q.describe(q.join(queued(9))), "job 4 (group/project), 3 more")

	stranger := queued(10)
	stranger.Identity.ProjectID++
	require.NotContains(t, q.describe(q.join(stranger)), "group/project", "its log is not for other projects")
}

func TestQueueGivesUp(t *testing.T) {
	gone := errors.New("caller is gone")
	synctest.Test(t, func(t *testing.T) {
		q := &queue{profile: "default", limit: 1}
		q.hold(queued(1))
		err := q.enter(t.Context(), queued(2), 90*time.Second, func(string) {})
		require.ErrorContains(t, err, `no berth became free in 1m30s: place 1 of 1; profile "default"`)
		require.True(t, errdefs.IsUnavailable(err))

		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.enter(ctx, queued(3), time.Hour, func(string) {}) }()
		synctest.Wait()
		cancel(gone)
		require.ErrorIs(t, <-done, gone)
		require.Empty(t, q.waiting)

		q.leave("1")
		require.NoError(t, q.enter(t.Context(), queued(4), 0, nil), "nobody holds a place any more")
	})
}
