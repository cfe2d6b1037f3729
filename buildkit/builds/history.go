package builds

import (
	"errors"
	"runtime"
	"sync/atomic"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	bolt "go.etcd.io/bbolt"
)

// noHistory keeps none: the job log has what builds said, and a job's endpoint ends with it.
func noHistory() *config.HistoryConfig { return &config.HistoryConfig{MaxEntries: new(int64)} }

// history is the empty database of all jobs, as a controller sees it.
type history struct {
	db    *bolt.DB
	ended *atomic.Bool
}

var errEnded = errors.New("the job's builds have ended")

// View is also what a controller's own goroutine calls every few minutes, for which there is no end: it ends here.
func (h history) View(fn func(*bolt.Tx) error) error {
	if h.ended.Load() {
		runtime.Goexit()
	}
	return h.db.View(fn)
}

func (h history) Update(fn func(*bolt.Tx) error) error {
	if h.ended.Load() {
		return errEnded
	}
	return h.db.Update(fn)
}

// Close leaves the database to other jobs.
func (history) Close() error { return nil }
