package node

import "gitlab.com/berth-ci/berth/node/api"

// watchBuffer is how many changes a watcher may lag behind before it is
// dropped; nobody waits for it.
const watchBuffer = 256

// watchers get each change of a job's state. They are guarded by the lock of
// the jobs, so that none misses a change after it saw the list.
type watchers map[chan api.Event]struct{}

func (w watchers) add() chan api.Event {
	c := make(chan api.Event, watchBuffer)
	w[c] = struct{}{}
	return c
}

func (w watchers) remove(c chan api.Event) {
	if _, ok := w[c]; ok {
		delete(w, c)
		close(c)
	}
}

func (w watchers) publish(e api.Event) {
	for c := range w {
		select {
		case c <- e:
		default:
			w.remove(c)
		}
	}
}
