package cache

import (
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
)

// commit is one of a workspace.
type commit struct{ key, sha string }

// fetch is a job's fetching of a commit.
type fetch struct {
	commit
	job  string
	done chan struct{}
}

// awaitFetch makes the job the one that fetches a commit, or waits for the one that does.
func (j *Job) awaitFetch(ctx context.Context, c commit, say func(string)) error {
	limit := time.NewTimer(time.Duration(j.record.Policy.Wait))
	defer limit.Stop()
	for told := false; ; told = true {
		if j.service.has(c) || !j.keepsTree() {
			return nil
		}
		other := j.service.lead(j, c)
		if other == nil {
			return nil
		}
		if !told {
			say(fmt.Sprintf("Waiting for %s, which fetches the same commit", holders([]cachemount.Holder{{Job: other.job}})))
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			j.log.WithFields(logrus.Fields{"for": other.job}).Info("a job fetches by itself what it waited for")
			return nil
		}
	}
}

// has tells whether a workspace has a commit.
func (s *Service) has(c commit) bool {
	info, ok := s.engine.Generations().Newest(c.key)
	return ok && info.Note == c.sha
}

// lead makes a job the one that fetches a commit, unless another does: then it is that one's fetch.
func (s *Service) lead(j *Job, c commit) (other *fetch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.fetches[c]; f != nil {
		return f
	}
	f := &fetch{commit: c, job: j.key, done: make(chan struct{})}
	s.fetches[c] = f
	j.leading = f
	return nil
}

// endFetch ends the job's fetch, if others may wait for it.
func (j *Job) endFetch() {
	f := j.leading
	j.leading = nil
	if f == nil {
		return
	}
	j.service.mu.Lock()
	delete(j.service.fetches, f.commit)
	j.service.mu.Unlock()
	close(f.done)
}
