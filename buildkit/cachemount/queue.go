package cachemount

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// Holder is who has a cache mount.
type Holder struct {
	Job   string
	Since time.Time
}

// aBuild holds what no job does. BuildKit does not tell which.
const aBuild = "a docker build"

func names(holders []Holder) string {
	var list []string
	for _, h := range holders {
		list = append(list, h.Job)
	}
	return strings.Join(list, ", ")
}

// queue is who has, and who waits for, the mounts of one key; first come, first served. All have one way of sharing.
type queue struct {
	sharing spec.Sharing
	holders []*ticket
	waiting []*ticket
}

// ticket is a place in a queue.
type ticket struct {
	Holder
	pool    int
	granted chan struct{}
}

// join takes a place in a key's queue, which is granted when its channel is closed.
func (t *Table) join(r Request) (*ticket, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[r.Key]
	if q == nil {
		q = &queue{sharing: r.Sharing}
		t.queues[r.Key] = q
	}
	if q.sharing != r.Sharing {
		who := append(slices.Clone(q.holders), q.waiting...)
		return nil, conflict(r, string(q.sharing), holdersOf(who))
	}
	k := &ticket{Holder: Holder{Job: r.Job, Since: time.Now()}, pool: r.Pool, granted: make(chan struct{})}
	q.waiting = append(q.waiting, k)
	q.grant()
	return k, nil
}

func conflict(r Request, sharing string, holders []Holder) error {
	return fmt.Errorf("cache %q is asked for as %s, and is %s to %s: one cache is shared in one way at a time; let all ask for it alike: %w",
		r.Key, r.Sharing, sharing, names(holders), errdefs.ErrConflict)
}

// grant serves who waits, in order, as far as there is room.
func (q *queue) grant() {
	for len(q.waiting) > 0 && q.room(q.waiting[0]) {
		k := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.hold(k)
	}
}

func (q *queue) hold(k *ticket) {
	k.Since = time.Now()
	q.holders = append(q.holders, k)
	close(k.granted)
}

func (q *queue) room(k *ticket) bool {
	switch q.sharing {
	case spec.Locked:
		return len(q.holders) == 0
	case spec.Private:
		return k.pool == 0 || len(q.holders) < k.pool
	default:
		return true
	}
}

// leave gives up a place, granted or not.
func (t *Table) leave(key string, k *ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[key]
	same := func(o *ticket) bool { return o == k }
	q.holders = slices.DeleteFunc(q.holders, same)
	q.waiting = slices.DeleteFunc(q.waiting, same)
	q.grant()
	if len(q.holders)+len(q.waiting) == 0 {
		delete(t.queues, key)
	}
}

// Holders is who has the mounts of a key.
func (t *Table) Holders(key string) []Holder {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.queues[key]; q != nil {
		return holdersOf(q.holders)
	}
	return nil
}

func holdersOf(tickets []*ticket) []Holder {
	holders := make([]Holder, 0, len(tickets))
	for _, k := range tickets {
		holders = append(holders, k.Holder)
	}
	return holders
}

// Check is for builds, which are in no queue: an error if jobs have the mounts of a key in another way, of which BuildKit
// would make a fork.
func (t *Table) Check(key string, sharing spec.Sharing) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.queues[key]; q != nil && q.sharing != sharing {
		return conflict(Request{Key: key, Sharing: sharing}, string(q.sharing), holdersOf(q.holders))
	}
	return nil
}
