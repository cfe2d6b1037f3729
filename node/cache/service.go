package cache

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/executor"
)

// Service gives jobs their caches.
type Service struct {
	engine *buildkit.Engine
	log    *logrus.Entry

	mu   sync.Mutex
	jobs map[string]*Job
	// fetches are the commits that jobs fetch at this moment.
	fetches map[commit]*fetch
}

// New makes a service that serves nothing before Retake.
func New(e *buildkit.Engine, log *logrus.Entry) *Service {
	return &Service{engine: e, log: log, jobs: map[string]*Job{}, fetches: map[commit]*fetch{}}
}

// Start is what a job brings along.
type Start struct {
	Key     string
	Request executor.Request
	Policy  executor.CachePolicy
	// Dir is the job's own directory, and Builds its files', shared with its containers.
	Dir, Builds string
	// Save writes the record to the job's journal.
	Save func(Record) error
}

// Job is what one job has of the caches. Its steps come one after another.
type Job struct {
	service *Service
	key     string
	dir     string
	builds  string
	save    func(Record) error
	log     *logrus.Entry

	mu     sync.Mutex
	record Record
	lent   map[string]*cachemount.Mount // by BuildKit's record
	clones map[string]*generation.Clone // likewise
	// suspect is the tree in which get_sources failed.
	suspect *generation.Info
	// leading is the fetch that other jobs wait for.
	leading *fetch
	ended   bool
}

// User is whom a job's build container runs as.
type User struct {
	UID int `json:"uid,omitempty"`
	GID int `json:"gid,omitempty"`
}

// Record is what the journal keeps of a job's caches: all that is needed to go on after a restart.
type Record struct {
	Identity executor.Identity    `json:"identity"`
	Policy   executor.CachePolicy `json:"policy"`
	Sources  executor.Sources     `json:"sources"`
	Publish  string               `json:"publish,omitempty"`
	User     User                 `json:"user,omitzero"`
	Mounts   []Mount              `json:"mounts,omitempty"`
	Entries  []Entry              `json:"entries,omitempty"`
	Tree     *Tree                `json:"tree,omitempty"`
	// Parts are the layers of caches in the tree, from the uppermost down.
	Parts []Part `json:"parts,omitempty"`
	// Saving are the clones that become generations.
	Saving []generation.Record `json:"saving,omitempty"`
	// Script says why the runner's own script has to serve `cache:`; empty when it is served here.
	Script string `json:"script,omitempty"`
}

// Held is what BuildKit has to keep for the job.
func (r Record) Held() buildkit.Held {
	var h buildkit.Held
	seen := map[string]bool{}
	clone := func(c *generation.Record) {
		if c != nil && !seen[c.ID] {
			seen[c.ID] = true
			h.Clones = append(h.Clones, *c)
		}
	}
	for _, m := range r.Mounts {
		if m.Lent != nil {
			h.Mounts = append(h.Mounts, *m.Lent)
		}
		clone(m.Clone)
	}
	for _, e := range r.Entries {
		clone(e.Base)
	}
	for i := range r.Parts {
		clone(&r.Parts[i].Clone)
	}
	for i := range r.Saving {
		clone(&r.Saving[i])
	}
	if r.Tree != nil {
		clone(&r.Tree.Clone)
	}
	return h
}

// Job finds a job that has a berth.
func (s *Service) Job(key string) (*Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[key]; j != nil {
		return j, nil
	}
	return nil, fmt.Errorf("job %s has no caches on this node: %w", key, errdefs.ErrNotFound)
}

func (s *Service) add(j *Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs[j.key] = j
}

func (s *Service) newJob(key, dir, builds string, r Record, save func(Record) error) *Job {
	return &Job{
		service: s, key: key, dir: dir, builds: builds, save: save, record: r,
		log:    s.log.WithField("job", key),
		lent:   map[string]*cachemount.Mount{},
		clones: map[string]*generation.Clone{},
	}
}

// Survivor is a job of an earlier berthd.
type Survivor struct {
	Key         string
	Dir, Builds string
	Record      Record
	Save        func(Record) error
	// Ended says that nothing of it lives: it is only to be released.
	Ended bool
}

// Retake takes back what jobs that live on have. It comes before anything is served.
func (s *Service) Retake(ctx context.Context, survivors []Survivor) error {
	var held buildkit.Held
	for _, v := range survivors {
		if v.Ended {
			continue
		}
		of := v.Record.Held()
		held.Mounts = append(held.Mounts, of.Mounts...)
		held.Clones = append(held.Clones, of.Clones...)
	}
	taken, err := s.engine.Retake(ctx, held)
	if err != nil {
		return fmt.Errorf("take back the caches of jobs: %w", err)
	}
	for _, m := range taken.Lost.Mounts {
		s.log.WithField("job", m.Job).Warnf("cache %q is lost", m.Key)
	}
	mounts, clones := map[string]*cachemount.Mount{}, map[string]*generation.Clone{}
	for _, m := range taken.Mounts {
		mounts[m.Record().Job+"/"+m.Record().ID] = m
	}
	for _, c := range taken.Clones {
		clones[c.Record().ID] = c
	}
	for _, v := range survivors {
		j := s.newJob(v.Key, v.Dir, v.Builds, v.Record, v.Save)
		of := v.Record.Held()
		for _, r := range of.Mounts {
			if m := mounts[v.Key+"/"+r.ID]; m != nil {
				j.lent[r.ID] = m
			}
		}
		for _, r := range of.Clones {
			if c := clones[r.ID]; c != nil {
				j.clones[r.ID] = c
			}
		}
		s.add(j)
		if v.Ended {
			continue
		}
		if err := j.resume(); err != nil {
			j.log.WithError(err).Error("cannot mount the working tree of a job again")
		}
	}
	return nil
}
