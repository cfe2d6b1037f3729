package test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// profiles are those of the shared node. A runner has the profile's name as
// its only tag.
func profiles(c *config.Config) {
	defaults := testnode.Profile(registry)
	small := defaults
	small.Memory, small.MemoryMax, small.CPUsMax = 64<<20, 128<<20, 1
	strict := defaults
	strict.AllowedImages = []string{registry.Address + "/test/{git,busybox}:*"}
	strict.AllowedServices = []string{registry.Address + "/test/web:*"}
	hasty := defaults
	hasty.WaitForServices = executor.Duration(2 * time.Second)
	noBuilds, impatient, open, operated := defaults, defaults, defaults, defaults
	noBuilds.Builds.Enabled = false
	impatient.Cache.Wait = executor.Duration(time.Second)
	open.Cache.Publish = executor.PublishAlways
	operated.Cache.Mounts = []string{
		"id=tools,target=/opt/tools,scope=node", "id=gems,target=/opt/gems,scope=group", "id=nightly,target=/opt/nightly,publish=scheduled",
	}
	c.Profiles = map[string]executor.Profile{
		"default": defaults, "small": small, "strict": strict, "hasty": hasty, "builder": builder(), "no-builds": noBuilds,
		"impatient": impatient, "open": open, "operated": operated,
	}
}

// server is a GitLab with runners, one for each profile that is asked for.
type server struct {
	*gitlab.Server
	node    *testnode.Node
	program string
	dir     string

	mu      sync.Mutex
	runners map[string]*runner.Process
}

// program is the runner to test with.
func program() string {
	if real := runner.Real(); real != "" {
		return real
	}
	return programs.Runner
}

func newServer(n *testnode.Node) (*server, error) {
	srv, err := n.GitLab()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-runners")
	if err != nil {
		return nil, err
	}
	return &server{Server: srv, node: n, program: program(), dir: dir, runners: map[string]*runner.Process{}}, nil
}

// runner starts the runner of a profile, unless it runs.
func (s *server) runner(profile string) (*runner.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.runners[profile]; p != nil {
		return p, nil
	}
	p, err := s.start(profile, profile, 8)
	if err == nil {
		s.runners[profile] = p
	}
	return p, err
}

// start starts another runner of a profile, for the jobs with a tag.
func (s *server) start(profile, tag string, concurrent int) (*runner.Process, error) {
	r := s.node.Runner(profile, s.URL(), s.AddRunner(tag))
	dir, err := os.MkdirTemp(s.dir, profile)
	if err != nil {
		return nil, err
	}
	// Its own directory for temporary files shows what it leaves.
	return runner.Start(s.program, dir, runner.Config{Concurrent: concurrent, CheckInterval: 1, Runners: []runner.Runner{r}},
		[]string{"TMPDIR=" + dir})
}

func (s *server) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for profile, p := range s.runners {
		if err := p.Stop(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "stop runner %s: %v\n", profile, err)
		}
	}
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	_ = os.RemoveAll(s.dir)
}

// shared is the server that most tests use, on the shared node.
var shared struct {
	once sync.Once
	*server
	project *gitlab.Project
	err     error
}

func stopServer() {
	if shared.server != nil {
		shared.stop()
	}
}

// files are those of most projects.
var files = fstest.MapFS{
	"README":   {Data: []byte("read me\n")},
	"src/main": {Data: []byte("content of main\n")},
}

// theServer gives the shared server and a project of it.
func theServer(t *testing.T) (*server, *gitlab.Project) {
	t.Helper()
	needNode(t)
	shared.once.Do(func() {
		if shared.server, shared.err = newServer(node); shared.err == nil {
			shared.project, shared.err = shared.AddProject("group/project", files)
		}
	})
	require.NoError(t, shared.err)
	return shared.server, shared.project
}

// enqueue makes a job for the runner of a profile.
func (s *server) enqueue(t *testing.T, profile string, spec gitlab.JobSpec) *gitlab.Job {
	t.Helper()
	if spec.Name == "" {
		spec.Name = t.Name()
	}
	if spec.Image.Name == "" {
		spec.Image.Name = registry.Image(images.Busybox)
	}
	spec.Tags = []string{profile}
	j, err := s.Enqueue(spec)
	require.NoError(t, err)
	_, err = s.runner(profile)
	require.NoError(t, err)
	return j
}

// end waits for a job's end, and shows its log when the test fails.
func end(t *testing.T, j *gitlab.Job) gitlab.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	state, err := j.Wait(ctx)
	t.Cleanup(func() {
		if t.Failed() {
			log := j.Log()
			t.Logf("job %s: %s %s, exit code %d\n%s", j.Name(), j.State(), j.FailureReason(), j.ExitCode(), log[:min(len(log), 20_000)])
			var ours []string
			for line := range strings.Lines(node.Log()) {
				if strings.Contains(line, fmt.Sprintf("j%d-", j.ID)) {
					ours = append(ours, line)
				}
			}
			t.Logf("berthd:\n%s", strings.Join(ours, ""))
		}
	})
	require.NoError(t, err)
	return state
}
