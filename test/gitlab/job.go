package gitlab

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
)

// State is the state of a job as GitLab names it.
type State string

// A job is created while jobs that it needs have not ended, then pending; one
// that was asked to stop is canceling until its runner has reported.
const (
	Created   State = "created"
	Pending   State = "pending"
	Running   State = "running"
	Canceling State = "canceling"
	Success   State = "success"
	Failed    State = "failed"
	Canceled  State = "canceled"
	Skipped   State = "skipped"
)

// Finished reports whether nothing more will happen to the job.
func (s State) Finished() bool {
	return s == Success || s == Failed || s == Canceled || s == Skipped
}

// JobSpec describes a job. Project, Name and Script are enough.
type JobSpec struct {
	Project   *Project
	Name      string
	Stage     string // "test" where empty
	Ref       string // the project's default branch where empty
	Tag       bool   // Ref is a tag
	Protected *bool  // nil: only the default branch is
	Pipeline  int64  // an id from Server.NewPipeline; 0 for a pipeline of its own

	Image       Image
	Services    []Image
	Variables   []Variable // come after the predefined ones and hide those
	Script      []string   // with before_script
	AfterScript []string
	ExtraSteps  []Step // after the script, such as release
	Artifacts   []Artifact
	Cache       []Cache
	Credentials []Credential
	Hooks       []Hook
	Timeout     time.Duration // an hour where 0

	Tags         []string
	Needs        []*Job // that have to end before
	Dependencies []*Job // the same, and their artifacts are downloaded
	When         string // on_success, on_failure or always
	AllowFailure bool

	// Edit has the last word on the payload, to make what GitLab never would.
	Edit func(*Payload)
}

// Job is a job on the server.
type Job struct {
	ID int64

	srv      *Server
	spec     JobSpec
	token    string
	pipeline int64
	sha      string

	// Guarded by srv.mu.
	state         State
	queued        time.Time
	started       time.Time
	finished      time.Time
	failureReason string
	exitCode      int
	trace         []byte
	artifacts     map[string]upload // by artifact type
}

// Enqueue makes a job at the present commit of its ref.
func (s *Server) Enqueue(spec JobSpec) (*Job, error) {
	if spec.Ref == "" {
		spec.Ref = DefaultBranch
	}
	if spec.Stage == "" {
		spec.Stage = "test"
	}
	if spec.Timeout == 0 {
		spec.Timeout = time.Hour
	}
	if spec.Pipeline == 0 {
		spec.Pipeline = s.NewPipeline()
	}
	sha, err := spec.Project.pin(spec.Ref, spec.Tag, spec.Pipeline)
	if err != nil {
		return nil, fmt.Errorf("enqueue job %q: %w", spec.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j := &Job{
		ID:        s.nextID(),
		srv:       s,
		spec:      spec,
		token:     newToken("glcbt-64_"),
		pipeline:  spec.Pipeline,
		sha:       sha,
		state:     Created,
		artifacts: map[string]upload{},
	}
	s.jobs[j.ID] = j
	s.queue = append(s.queue, j)
	s.promote()
	return j, nil
}

// NewPipeline returns an id under which several jobs can be enqueued.
func (s *Server) NewPipeline() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextID()
}

// promote queues or skips the jobs whose needs have ended. s.mu is held.
func (s *Server) promote() {
	for again := true; again; {
		again = false
		for _, j := range s.queue {
			if j.state != Created {
				continue
			}
			switch ready, run := j.ready(); {
			case ready && run:
				j.state, j.queued = Pending, time.Now()
			case ready:
				j.state, j.finished = Skipped, time.Now()
				again = true
			}
		}
	}
	s.notify()
}

func (j *Job) ready() (ready, run bool) {
	failed := false
	for _, need := range slices.Concat(j.spec.Needs, j.spec.Dependencies) {
		if !need.state.Finished() {
			return false, false
		}
		ok := need.state == Success || need.state == Failed && need.spec.AllowFailure
		failed = failed || !ok
	}
	switch j.spec.When {
	case "always":
		return true, true
	case "on_failure":
		return true, failed
	default:
		return true, !failed
	}
}

// finish records what the runner reported. s.mu is held.
func (j *Job) finish(state State, reason string, exitCode int) {
	if j.state == Canceling {
		state, reason = Canceled, ""
	}
	j.state, j.failureReason, j.exitCode, j.finished = state, reason, exitCode, time.Now()
	j.srv.promote()
}

// Cancel asks the runner to stop the job but to let after_script and the
// stages behind it run, as the button in GitLab does.
func (j *Job) Cancel() {
	j.srv.mu.Lock()
	defer j.srv.mu.Unlock()
	switch j.state {
	case Created, Pending:
		j.finish(Canceled, "", 0)
	case Running:
		j.state = Canceling
		j.srv.notify()
	}
}

// ForceCancel ends the job at once; its runner is told to drop everything.
func (j *Job) ForceCancel() {
	j.srv.mu.Lock()
	defer j.srv.mu.Unlock()
	if !j.state.Finished() {
		j.finish(Canceled, "", 0)
	}
}

// Wait returns the final state.
func (j *Job) Wait(ctx context.Context) (State, error) {
	var state State
	err := j.srv.await(ctx, func() bool { state = j.state; return state.Finished() })
	return state, err
}

// WaitLog waits until the log, as Log gives it, holds text.
func (j *Job) WaitLog(ctx context.Context, text string) error {
	found, ended := false, false
	err := j.srv.await(ctx, func() bool {
		found, ended = bytes.Contains([]byte(plain(j.trace)), []byte(text)), j.state.Finished()
		return found || ended
	})
	if err == nil && !found {
		return fmt.Errorf("job %d ended as %s without saying %q", j.ID, j.state, text)
	}
	return err
}

// State is the present state.
func (j *Job) State() State { return get(j, func() State { return j.state }) }

// FailureReason is what the runner gave, such as script_failure.
func (j *Job) FailureReason() string { return get(j, func() string { return j.failureReason }) }

// ExitCode is the exit code that the runner reported.
func (j *Job) ExitCode() int { return get(j, func() int { return j.exitCode }) }

// Name is the job's name.
func (j *Job) Name() string { return j.spec.Name }

// Token is the job's token, which opens its repository and artifacts.
func (j *Job) Token() string { return j.token }

// Duration is the time from start to end, or to now.
func (j *Job) Duration() time.Duration {
	return get(j, func() time.Duration {
		switch {
		case j.started.IsZero():
			return 0
		case j.finished.IsZero():
			return time.Since(j.started)
		default:
			return j.finished.Sub(j.started)
		}
	})
}

// Trace is the log as the runner sent it.
func (j *Job) Trace() string { return get(j, func() string { return string(j.trace) }) }

// Log is the log as a person reads it: see plain.
func (j *Job) Log() string { return get(j, func() string { return plain(j.trace) }) }

func get[T any](j *Job, value func() T) T {
	j.srv.mu.Lock()
	defer j.srv.mu.Unlock()
	return value()
}

// AllowedToFail reports whether the pipeline succeeds without the job.
func (j *Job) AllowedToFail() bool { return j.spec.AllowFailure }
