package gitlab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func newServer(t *testing.T) (*Server, *Project) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, err := New(l)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	p, err := s.AddProject("group/a project é", fstest.MapFS{"file": {Data: []byte("content")}})
	require.NoError(t, err)
	return s, p
}

// answer is a response that has been read.
type answer struct {
	StatusCode int
	Header     http.Header
}

// call makes a request of a runner's and returns the answer and its body.
func call(t *testing.T, s *Server, method, path, token string, header http.Header, body string) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+"/api/v4/"+path, bytes.NewBufferString(body))
	require.NoError(t, err)
	req.Header = http.Header{"Job-Token": {token}}
	for key, values := range header {
		req.Header[key] = values
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return answer{res.StatusCode, res.Header}, string(content)
}

func request(t *testing.T, s *Server, token string) *Payload {
	t.Helper()
	res, body := call(t, s, http.MethodPost, "jobs/request", "", nil, fmt.Sprintf(`{"token":%q}`, token))
	if res.StatusCode == http.StatusNoContent {
		return nil
	}
	require.Equal(t, http.StatusCreated, res.StatusCode)
	p := new(Payload)
	require.NoError(t, json.Unmarshal([]byte(body), p))
	return p
}

func TestQueue(t *testing.T) {
	s, project := newServer(t)
	plainRunner, tagged := s.AddRunner(), s.AddRunner("gpu", "big")
	first, err := s.Enqueue(JobSpec{Project: project, Name: "first", Tags: []string{"gpu"}, Script: []string{"true"}})
	require.NoError(t, err)
	needs := func(name, when string) *Job {
		j, err := s.Enqueue(JobSpec{Project: project, Name: name, Needs: []*Job{first}, When: when, Script: []string{"true"}})
		require.NoError(t, err)
		return j
	}
	onSuccess, onFailure, always := needs("then", ""), needs("else", "on_failure"), needs("always", "always")

	require.Nil(t, request(t, s, plainRunner))
	p := request(t, s, tagged)
	require.Equal(t, first.ID, p.ID)
	require.Equal(t, "group/a project é", p.JobInfo.ProjectFullPath)
	require.Nil(t, request(t, s, tagged), "the others wait for the first")

	res, _ := call(t, s, http.MethodPut, fmt.Sprintf("jobs/%d", p.ID), p.Token, nil, `{"state":"failed","failure_reason":"script_failure","exit_code":3}`)
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Equal(t, Failed, first.State())
	require.Equal(t, 3, first.ExitCode())
	require.Equal(t, Skipped, onSuccess.State())
	require.Equal(t, onFailure.ID, request(t, s, plainRunner).ID)
	require.Equal(t, always.ID, request(t, s, plainRunner).ID)

	res, _ = call(t, s, http.MethodPost, "jobs/request", "", nil, `{"token":"unknown"}`)
	require.Equal(t, http.StatusForbidden, res.StatusCode)
}

func TestTrace(t *testing.T) {
	s, project := newServer(t)
	j, err := s.Enqueue(JobSpec{Project: project, Name: "job", Script: []string{"true"}})
	require.NoError(t, err)
	p := request(t, s, s.AddRunner())
	trace := fmt.Sprintf("jobs/%d/trace", j.ID)
	patch := func(token, where, text string) answer {
		res, _ := call(t, s, http.MethodPatch, trace, token, http.Header{"Content-Range": {where}}, text)
		return res
	}
	require.Equal(t, http.StatusForbidden, patch("wrong", "0-2", "abc").StatusCode)
	require.Equal(t, http.StatusAccepted, patch(p.Token, "0-2", "abc").StatusCode)
	gap := patch(p.Token, "9-11", "xyz")
	require.Equal(t, http.StatusRequestedRangeNotSatisfiable, gap.StatusCode)
	require.Equal(t, "0-3", gap.Header.Get("Range"))
	j.Cancel()
	require.Equal(t, "canceling", patch(p.Token, "3-5", "def").Header.Get("Job-Status"))
	require.Equal(t, "abcdef", j.Trace())
	j.ForceCancel()
	dropped := patch(p.Token, "6-8", "ghi")
	require.Equal(t, http.StatusForbidden, dropped.StatusCode)
	require.Equal(t, "canceled", dropped.Header.Get("Job-Status"))
	require.Equal(t, "abcdef", j.Trace())
}

func TestRepository(t *testing.T) {
	s, project := newServer(t)
	_, err := s.Enqueue(JobSpec{Project: project, Name: "job", Script: []string{"true"}})
	require.NoError(t, err)
	p := request(t, s, s.AddRunner())
	clone := func(address string) error {
		dir := filepath.Join(t.TempDir(), "clone")
		cmd := exec.CommandContext(t.Context(), "git", "clone", "--quiet", address, dir)
		cmd.Env = append(gitEnv(), "GIT_TERMINAL_PROMPT=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		require.FileExists(t, filepath.Join(dir, "file"))
		return nil
	}
	require.NoError(t, clone(p.GitInfo.RepoURL))
	require.Error(t, clone(project.url()+".git"), "without the job's token")
	res, _ := call(t, s, http.MethodPut, fmt.Sprintf("jobs/%d", p.ID), p.Token, nil, `{"state":"success"}`)
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Error(t, clone(p.GitInfo.RepoURL), "after the job's end")
}

func TestVariablesComeInOrder(t *testing.T) {
	s, project := newServer(t)
	project.SetVariables(Variable{Key: "A", Value: "settings"})
	_, err := s.Enqueue(JobSpec{
		Project: project, Name: "job", Script: []string{"true"},
		Variables: []Variable{{Key: "CI_COMMIT_REF_PROTECTED", Value: "forged"}, {Key: "A", Value: "yaml"}},
	})
	require.NoError(t, err)
	found := map[string][]string{}
	for _, v := range request(t, s, s.AddRunner()).Variables {
		found[v.Key] = append(found[v.Key], v.Value)
	}
	require.Equal(t, []string{"true", "forged"}, found["CI_COMMIT_REF_PROTECTED"])
	require.Equal(t, []string{"yaml", "settings"}, found["A"])
}

func TestIntercept(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, err := New(l, WithIntercept(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}), WithURL("http://gitlab.test/"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.Equal(t, "http://gitlab.test", s.URL())
	res, err := http.Post("http://"+l.Addr().String()+"/api/v4/jobs/request", "application/json", nil)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
}
