package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/testnode"
)

const (
	buildFailure  = 91 // anything, so that no default of berth's is taken for it
	systemFailure = 92
)

// caller makes the calls of one job, as a runner does: the test is its runner.
type caller struct {
	t       *testing.T
	node    *testnode.Node
	socket  string
	dir     string
	payload string // file
	env     []string
}

// newCaller takes a job from a GitLab as a runner does.
func newCaller(t *testing.T, n *testnode.Node, s *gitlab.Server, spec gitlab.JobSpec) *caller {
	t.Helper()
	tag := strings.ReplaceAll(t.Name(), "/", "-")
	if spec.Image.Name == "" {
		spec.Image.Name = registry.Image(images.Git)
	}
	spec.Name, spec.Tags = tag, []string{tag}
	_, err := s.Enqueue(spec)
	require.NoError(t, err)
	request, err := json.Marshal(map[string]string{"token": s.AddRunner(tag)})
	require.NoError(t, err)
	res, err := http.Post(s.URL()+"/api/v4/jobs/request", "application/json", bytes.NewReader(request))
	require.NoError(t, err)
	defer res.Body.Close()
	payload, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return callerOf(t, n, payload)
}

// callerOf has a payload of the test's.
func callerOf(t *testing.T, n *testnode.Node, payload []byte) *caller {
	t.Helper()
	c := &caller{t: t, node: n, socket: n.Config.Socket, dir: t.TempDir()}
	c.payload = filepath.Join(c.dir, "response.json")
	require.NoError(t, os.WriteFile(c.payload, payload, 0o600))
	var job gitlab.Payload
	if json.Unmarshal(payload, &job) == nil {
		for _, v := range job.Variables {
			c.env = append(c.env, "CUSTOM_ENV_"+v.Key+"="+v.Value)
		}
	}
	t.Cleanup(func() {
		if n.Config.Socket == c.socket {
			c.expect(t.Context(), 0, "cleanup")
		}
	})
	return c
}

func (c *caller) command(ctx context.Context, args ...string) *exec.Cmd {
	// A canceled ctx is a canceled job: the call has time to end in peace.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), programs.Berth, append([]string{"--socket", c.socket}, args...)...)
	cmd.Dir = c.dir
	cmd.Env = append(append(os.Environ(), c.env...),
		"TMPDIR="+c.dir, "JOB_RESPONSE_FILE="+c.payload, "BUILD_EXIT_CODE_FILE="+filepath.Join(c.dir, "exit_code"),
		fmt.Sprint("BUILD_FAILURE_EXIT_CODE=", buildFailure), fmt.Sprint("SYSTEM_FAILURE_EXIT_CODE=", systemFailure))
	return cmd
}

// call makes a call and returns what it prints and its exit status.
func (c *caller) call(ctx context.Context, args ...string) (output string, status int) {
	c.t.Helper()
	out, err := c.command(ctx, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Error(err)
		return string(out), -1
	}
	if exit != nil {
		status = exit.ExitCode()
	}
	return string(out), status
}

// expect makes a call that ends with a status.
func (c *caller) expect(ctx context.Context, want int, args ...string) string {
	c.t.Helper()
	out, status := c.call(ctx, args...)
	if status != want {
		c.t.Errorf("berth %s: expected exit status %d, got %d: %s", strings.Join(args, " "), want, status, out)
	}
	return out
}

func (c *caller) script(text string) string {
	c.t.Helper()
	f, err := os.CreateTemp(c.dir, "script")
	require.NoError(c.t, err)
	_, err = f.WriteString(text)
	require.NoError(c.t, errors.Join(err, f.Close()))
	return f.Name()
}

func TestCalls(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	require.Contains(t, c.expect(t.Context(), 0, "config"), `"builds_dir":"/builds"`)
	require.Contains(t, c.expect(t.Context(), systemFailure, "run", c.script("true"), "prepare_script"), "the job was not prepared")
	c.expect(t.Context(), 0, "cleanup") // without a prepare
	c.expect(t.Context(), 0, "prepare")
	c.expect(t.Context(), 0, "prepare") // again, with no cleanup between
	require.Equal(t, "one\n", c.expect(t.Context(), 0, "run", c.script("echo one"), "build_script"))
	c.expect(t.Context(), buildFailure, "run", c.script("exit 5"), "build_script")
	code, err := os.ReadFile(filepath.Join(c.dir, "exit_code"))
	require.NoError(t, err)
	require.Equal(t, "5\n", string(code))
	c.expect(t.Context(), 0, "cleanup")
	c.expect(t.Context(), 0, "cleanup") // twice
	require.Contains(t, c.expect(t.Context(), systemFailure, "run", c.script("true"), "build_script"), "is gone")
}

func TestCleanupBesideRun(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	c.expect(t.Context(), 0, "prepare")
	run := c.command(t.Context(), "run", c.script("trap '' TERM; echo begun; while :; do sleep 0.1; done"), "build_script")
	stdout, err := run.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, run.Start())
	_, err = stdout.Read(make([]byte, 6))
	require.NoError(t, err)
	c.expect(t.Context(), 0, "cleanup")
	ended := make(chan error, 1)
	go func() { ended <- run.Wait() }()
	select {
	case err := <-ended:
		require.Error(t, err)
	case <-time.After(20 * time.Second):
		t.Error("the run still lives")
		_ = run.Process.Kill()
		<-ended //nolint:errcheck // it was killed
	}
}

func TestBadPayloads(t *testing.T) {
	needNode(t)
	t.Parallel()
	const secret = "glcbt-64_secret"
	for name, c := range map[string]struct{ payload, want string }{
		"empty":        {"", "not JSON"},
		"no JSON":      {"token=" + secret, "not JSON at byte "},
		"cut short":    {`{"id":1,"token":"` + secret, "not JSON at byte "},
		"wrong type":   {`{"id":"` + secret + `"}`, `field "id": expected int64, got string`},
		"no object":    {`["` + secret + `"]`, "decode job payload"},
		"null":         {"null", `field "id"`},
		"no id":        {`{"token":"` + secret + `"}`, `field "id": expected a positive job id`},
		"bad services": {`{"id":1,"services":{"name":"` + secret + `"}}`, `field "services"`},
	} {
		t.Run(name, func(t *testing.T) {
			job := callerOf(t, node, []byte(c.payload))
			for _, call := range []string{"config", "prepare"} {
				out := job.expect(t.Context(), systemFailure, call)
				require.Contains(t, out, c.want)
				require.NotContains(t, out, secret)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		job := callerOf(t, node, nil)
		require.NoError(t, os.Remove(job.payload))
		require.Contains(t, job.expect(t.Context(), systemFailure, "config"), "no such file or directory")
		job.payload = ""
		require.Contains(t, job.expect(t.Context(), systemFailure, "prepare"), "JOB_RESPONSE_FILE is not set")
	})
}

func TestNoBerthd(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	c.socket = filepath.Join(t.TempDir(), "berthd.sock")
	require.Contains(t, c.expect(t.Context(), systemFailure, "prepare"), "berthd is not running")
	leaveSocket(t, c.socket)
	require.Contains(t, c.expect(t.Context(), systemFailure, "prepare"), "the socket is left over")
	c.expect(t.Context(), 0, "config") // needs none
	c.expect(t.Context(), 0, "cleanup")
}

// TestOrphan prepares a job whose runner was killed an instant before, so that
// the call's parent is whoever takes in orphans. Such a job would never end.
func TestOrphan(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	prepare := c.command(t.Context(), "prepare")
	status := filepath.Join(c.dir, "status")
	orphan := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `(read go; "$@"; echo $? >"$0.new"; mv "$0.new" "$0") <&3 &`, status}, prepare.Args...)...)
	orphan.Dir, orphan.Env = prepare.Dir, prepare.Env
	hold, release, err := os.Pipe()
	require.NoError(t, err)
	reader, stdout, err := os.Pipe()
	require.NoError(t, err)
	orphan.ExtraFiles, orphan.Stdout, orphan.Stderr = []*os.File{hold}, stdout, stdout
	require.NoError(t, orphan.Run())
	require.NoError(t, errors.Join(hold.Close(), stdout.Close(), reader.Close()))
	_, err = release.WriteString("go\n")
	require.NoError(t, errors.Join(err, release.Close()))
	require.Eventually(t, func() bool { _, err := os.Stat(status); return err == nil }, 20*time.Second, 10*time.Millisecond)
	jobs, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	for _, j := range jobs {
		require.NotEqual(t, t.Name(), j.Identity.Name, "%v", j)
	}
}

func TestUnknownProfile(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	out, status := c.call(t.Context(), "prepare", "--profile", "none")
	require.NotZero(t, status)
	require.Contains(t, out, `"none"`)
}

// attach runs a command in a job's build container, as an operator does.
func attach(t *testing.T, job, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), programs.Berth, "--socket", node.Config.Socket, "attach", job, "--", "sh", "-c", command)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// leaveSocket makes a socket that nobody listens on.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}
