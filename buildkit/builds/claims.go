package builds

import (
	"regexp"
	"sync"
	"time"
)

// claims is whose a session's id is. Sessions themselves are a job's own, but BuildKit keeps the tokens of registries by
// the client's word for its session, in one table for all, for minutes after the session.
type claims struct {
	mu sync.Mutex
	m  map[string]*claim
}

type claim struct {
	job   string
	ended time.Time // of the job; zero while it lives
}

// remember is how long an id is still that of a job that is gone: longer than BuildKit keeps tokens.
const remember = time.Hour

// sessionID keeps out what would read as another entry of that table.
var sessionID = regexp.MustCompile(`^[A-Za-z0-9_-]{8,128}$`)

// claim tells whether a session is the job's, or becomes so.
func (c *claims) claim(id, job string) bool {
	if !sessionID.MatchString(id) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]*claim{}
	}
	if has := c.m[id]; has != nil {
		return has.job == job
	}
	c.m[id] = &claim{job: job}
	return true
}

// release lets a job's ids go, after a while.
func (c *claims) release(job string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for id, has := range c.m {
		switch {
		case has.job == job && has.ended.IsZero():
			has.ended = now
		case !has.ended.IsZero() && now.Sub(has.ended) > remember:
			delete(c.m, id)
		}
	}
}
