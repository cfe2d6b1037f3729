package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner/job"
)

// client speaks the runner's side of GitLab's API.
type client struct {
	url, token, executor string
	http                 http.Client
}

func newClient(r Runner) *client {
	return &client{
		url: strings.TrimRight(r.URL, "/") + "/api/v4/", token: r.Token, executor: r.Executor,
		http: http.Client{Timeout: time.Hour},
	}
}

// info is what the runner says of itself in every call.
func (c *client) info() map[string]any {
	return map[string]any{
		"name": "gitlab-runner", "version": job.Version, "revision": "HEAD",
		"platform": runtime.GOOS, "architecture": runtime.GOARCH, "executor": c.executor, "shell": "bash",
		"features": map[string]bool{
			"variables": true, "artifacts": true, "cache": true, "shared": true, "refspecs": true, "masking": true,
			"upload_multiple_artifacts": true, "upload_raw_artifacts": true, "raw_variables": true,
			"artifacts_exclude": true, "multi_build_steps": true, "fallback_cache_keys": true,
			"return_exit_code": true, "service_variables": true, "cancelable": true, "cancel_gracefully": true,
		},
	}
}

// answer is a response that has been read to its end.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (c *client) do(ctx context.Context, method, path string, header http.Header, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header = header
	res, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, content}, err
}

// request asks for a job; nil means that there is none.
func (c *client) request(ctx context.Context) (*gitlab.Payload, error) {
	body, err := json.Marshal(map[string]any{"info": c.info(), "token": c.token, "system_id": "s_standin"})
	if err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {"application/json"}, "Runner-Token": {c.token}}
	a, err := c.do(ctx, http.MethodPost, "jobs/request", header, body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("request job: %w", err)
	case a.code == http.StatusNoContent:
		return nil, nil
	case a.code != http.StatusCreated:
		return nil, fmt.Errorf("request job: the server answered %d %s", a.code, http.StatusText(a.code))
	}
	payload := new(gitlab.Payload)
	if err := json.Unmarshal(a.body, payload); err != nil {
		return nil, fmt.Errorf("read job: %w", err)
	}
	return payload, nil
}

// jobStatus is what the server says in answer to an update.
type jobStatus struct {
	code     int
	canceled bool          // stop the script
	dropped  bool          // stop everything
	interval time.Duration // until the next update; 0: as before
}

func newJobStatus(a answer) jobStatus {
	state := a.header.Get("Job-Status")
	s := jobStatus{
		code:     a.code,
		canceled: state == "canceling",
		dropped:  state == "canceled" || state == "failed" || a.code == http.StatusForbidden || a.code == http.StatusNotFound,
	}
	if d, err := time.ParseDuration(a.header.Get("X-GitLab-Trace-Update-Interval") + "s"); err == nil {
		s.interval = d
	}
	return s
}

// update reports a state.
func (c *client) update(ctx context.Context, payload *gitlab.Payload, state string, result *Result) (jobStatus, error) {
	request := map[string]any{"info": c.info(), "token": payload.Token, "state": state}
	if result != nil && result.State == "failed" {
		request["failure_reason"] = result.FailureReason
		if result.ExitCode != 0 {
			request["exit_code"] = result.ExitCode
		}
	}
	body, err := json.Marshal(request)
	if err != nil {
		return jobStatus{}, err
	}
	header := http.Header{"Content-Type": {"application/json"}, "Job-Token": {payload.Token}}
	a, err := c.do(ctx, http.MethodPut, fmt.Sprintf("jobs/%d", payload.ID), header, body)
	if err != nil {
		return jobStatus{}, fmt.Errorf("update job: %w", err)
	}
	return newJobStatus(a), nil
}

// appendTrace sends a piece of the log.
func (c *client) appendTrace(ctx context.Context, payload *gitlab.Payload, offset int, piece []byte) (jobStatus, error) {
	header := http.Header{
		"Content-Type": {"text/plain"}, "Job-Token": {payload.Token},
		"Content-Range": {fmt.Sprintf("%d-%d", offset, offset+len(piece)-1)},
	}
	a, err := c.do(ctx, http.MethodPatch, fmt.Sprintf("jobs/%d/trace?debug_trace=false", payload.ID), header, piece)
	if err != nil {
		return jobStatus{}, fmt.Errorf("append trace: %w", err)
	}
	return newJobStatus(a), nil
}
