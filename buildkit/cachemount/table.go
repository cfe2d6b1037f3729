package cachemount

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"

	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// Config says what a table works with.
type Config struct {
	Cache     cache.Manager
	Sessions  *session.Manager
	Snapshots snapshot.Snapshotter
}

// Table is who has which cache mount.
type Table struct {
	Config
	ready  atomic.Bool
	mu     sync.Mutex
	queues map[string]*queue // by key
}

// NewTable makes a table that lends nothing until Retake.
func NewTable(c Config) *Table {
	return &Table{Config: c, queues: map[string]*queue{}}
}

// Request is what a job asks for.
type Request struct {
	Key     string // of Key
	Job     string // for others to read
	Sharing spec.Sharing
	Pool    int // copies of a private cache, 0 for no limit

	// Limit is how long the job waits; 0 for not at all. While it does, Progress is told at once and then every
	// Interval.
	Limit    time.Duration
	Interval time.Duration
	Progress func(Wait)
}

// Wait is a job's waiting.
type Wait struct {
	Key     string
	Holders []Holder      // whom it waits for
	For     time.Duration // so far
}

func (w Wait) String() string {
	text := fmt.Sprintf("cache %q is in use by %s", w.Key, names(w.Holders))
	if w.For < time.Second {
		return text + ", waiting"
	}
	return fmt.Sprintf("%s, waiting for %s", text, w.For.Round(time.Second))
}

func (r Request) validate() error {
	if err := validateKey(r.Key); err != nil {
		return err
	}
	switch r.Sharing {
	case spec.Shared, spec.Locked, spec.Private:
		return nil
	}
	return fmt.Errorf("cache %q: %q is no way to share a mount: %w", r.Key, r.Sharing, errdefs.ErrInvalidArgument)
}

// Mount is a directory that a job has.
type Mount struct {
	table   *Table
	ticket  *ticket
	ref     cache.MutableRef
	record  Record
	path    string
	unmount func() error
	once    sync.Once
}

// Record is what a job's journal keeps of a mount, for Retake.
type Record struct {
	ID      string // of BuildKit's record
	Key     string
	Job     string
	Sharing spec.Sharing
	Since   time.Time
}

// Record is for the job's journal, and to be written there before the mount is used.
func (m *Mount) Record() Record { return m.record }

// Path is the directory on the node, to be bound into the job's containers.
func (m *Mount) Path() string { return m.path }

// Release gives the mount back, after the containers that have it are gone. Once is enough, and further calls do
// nothing.
func (m *Mount) Release(ctx context.Context) (err error) {
	m.once.Do(func() {
		err = errors.Join(m.unmount(), drop(ctx, m.ref))
		m.table.leave(m.record.Key, m.ticket)
	})
	if err != nil {
		return fmt.Errorf("release cache %q: %w", m.record.Key, err)
	}
	return nil
}

// drop releases a record in spite of a context that may have ended.
func drop(ctx context.Context, ref cache.Ref) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return ref.Release(ctx)
}
