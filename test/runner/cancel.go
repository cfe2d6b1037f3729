package runner

import (
	"context"
	"sync"
)

// canceler holds what a cancel in GitLab has to stop: first the whole job,
// from the script on only that. A cancel that came before set works at once.
type canceler struct {
	mu       sync.Mutex
	stop     context.CancelFunc
	canceled bool
}

func (c *canceler) set(stop context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = stop
	if c.canceled {
		stop()
	}
}

func (c *canceler) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.canceled && c.stop != nil {
		c.stop()
	}
	c.canceled = true
}
