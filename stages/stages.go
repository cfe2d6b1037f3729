// Package stages is the four calls of gitlab-runner's custom executor:
// config, prepare, run and cleanup, one file each.
//
// They are short-lived processes. What a later one must know of an earlier
// one is in a file in the runner's directory for the job; what outlives the
// job is berthd's.
package stages

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	containerd "github.com/containerd/containerd/v2/client"

	"gitlab.com/berth-ci/berth/agent"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Where a job finds its files, in all of its containers.
const (
	buildsDir = executor.BuildsDir
	cacheDir  = "/cache"
)

// Stage is one of gitlab-runner's calls.
type Stage struct {
	Call *executor.Call
	// Profile is the operator's choice for this runner.
	Profile string
	Berthd  *api.Client
	// Version of berth, told to gitlab-runner.
	Version string
}

// state is what the calls of a job leave for each other.
type state struct {
	Job string `json:"job"`
	// Admission is nil until berthd has admitted the job.
	Admission *api.Admission `json:"admission,omitempty"`
	// Build and Helper are the containers' main processes.
	Build  process `json:"build"`
	Helper process `json:"helper"`
	// User is whom the build container runs as; its files shall be theirs.
	User agent.User `json:"user"`
	// CacheEnv tells scripts what they got of the node's caches.
	CacheEnv map[string]string `json:"cache_env,omitempty"`
	// Native says that berthd serves `cache:`, and Restored what came of it.
	Native   bool     `json:"native,omitempty"`
	Restored []string `json:"restored,omitempty"`
	// Succeeded tells whether the job's script has.
	Succeeded bool `json:"succeeded,omitempty"`
	// ServiceLogs is how far each service's log has been shown.
	ServiceLogs []serviceLog `json:"service_logs,omitempty"`
}

// process is a container's main process. The start time tells it from a
// later one with its pid.
type process struct {
	api.Process
	Container string `json:"container"`
}

func (s *Stage) statePath() string { return filepath.Join(s.Call.TempDir, "berth.json") }

// save replaces the state file whole.
func (s *Stage) save(st *state) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	next := s.statePath() + ".next"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(next, s.statePath()); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func (s *Stage) load() (*state, error) {
	b, err := os.ReadFile(s.statePath())
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	st := new(state)
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("read state %s: %w", s.statePath(), err)
	}
	return st, nil
}

func connect(c api.Containerd) (*containerd.Client, error) {
	client, err := containerd.New(c.Address, containerd.WithDefaultNamespace(c.Namespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", c.Address, err)
	}
	return client, nil
}

// warn writes to the job log what does not stop the job.
func warn(ctx context.Context, format string, args ...any) {
	if ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "WARNING: "+format+"\n", args...)
	}
}
