package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/containerd/errdefs"
)

// Client speaks with the berthd behind a socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client; it connects with the first call.
func NewClient(socket string) *Client {
	return &Client{
		socket: socket,
		http: http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
			DisableCompression: true,
		}},
	}
}

// Admit asks for a berth and waits for it, passing each line of progress on.
// A cancelled wait gives up the place in the queue.
func (c *Client) Admit(ctx context.Context, r AdmitRequest, progress func(string)) (*Admission, error) {
	body, err := c.do(ctx, http.MethodPost, "/v1/jobs/admit", r)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var e AdmitEvent
		if err := events.Decode(&e); err != nil {
			return nil, fmt.Errorf("berthd went away while it admitted the job: %w", errors.Join(errdefs.ErrUnavailable, err))
		}
		switch {
		case e.Error != nil:
			return nil, e.Error.Err()
		case e.Admission != nil:
			return e.Admission, nil
		case e.Progress != "":
			progress(e.Progress)
		}
	}
}

// Release ends a job: it is cleaned up when the call returns. Releasing a
// job that berthd does not know is not an error.
func (c *Client) Release(ctx context.Context, job string) error {
	return c.call(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(job)+"/release", nil, nil)
}

// End is Release for those who need not wait for its second half: nothing of
// the job runs when it returns, and what it had is removed soon after.
func (c *Client) End(ctx context.Context, job string) error {
	return c.call(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(job)+"/end", nil, nil)
}

// Outcome reports how a stage ended.
func (c *Client) Outcome(ctx context.Context, job string, o Outcome) error {
	return c.call(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(job)+"/outcome", o, nil)
}

// CacheStep tells that a job has come to a step that its caches are concerned
// with, passing each line of progress on.
func (c *Client) CacheStep(ctx context.Context, job, name string, step CacheStep, progress func(string)) (*CacheResult, error) {
	body, err := c.do(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(job)+"/cache/"+name, step)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var e CacheEvent
		if err := events.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("berthd went away while it served the job's caches: %w", errors.Join(errdefs.ErrUnavailable, err))
		}
		switch {
		case e.Error != nil:
			return nil, e.Error.Err()
		case e.Result != nil:
			return e.Result, nil
		case e.Progress != "":
			progress(e.Progress)
		}
	}
}

// Jobs lists the jobs on the node, waiting ones too, oldest first.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	var jobs []Job
	err := c.call(ctx, http.MethodGet, "/v1/jobs", nil, &jobs)
	return jobs, err
}

// Admission gives a running job's berth again.
func (c *Client) Admission(ctx context.Context, job string) (*Admission, error) {
	a := new(Admission)
	if err := c.call(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(job), nil, a); err != nil {
		return nil, err
	}
	return a, nil
}

// Watch calls each for the state of every job now and then for each change,
// until ctx ends or each returns an error.
func (c *Client) Watch(ctx context.Context, each func(Event) error) error {
	body, err := c.do(ctx, http.MethodGet, "/v1/jobs/watch", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var e Event
		if err := events.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("watch jobs: %w", errors.Join(errdefs.ErrUnavailable, err))
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// Caches lists what the node keeps.
func (c *Client) Caches(ctx context.Context) ([]Cache, error) {
	var list []Cache
	err := c.call(ctx, http.MethodGet, "/v1/caches", nil, &list)
	return list, err
}

// PinCache keeps a cache from being removed, or no longer.
func (c *Client) PinCache(ctx context.Context, change CacheChange) error {
	return c.call(ctx, http.MethodPost, "/v1/caches/pin", change, nil)
}

// RollBackCache has jobs get an earlier generation again.
func (c *Client) RollBackCache(ctx context.Context, change CacheChange) (*Generation, error) {
	g := new(Generation)
	if err := c.call(ctx, http.MethodPost, "/v1/caches/rollback", change, g); err != nil {
		return nil, err
	}
	return g, nil
}

// RemoveCache forgets a cache, or one generation of it.
func (c *Client) RemoveCache(ctx context.Context, change CacheChange) error {
	return c.call(ctx, http.MethodPost, "/v1/caches/remove", change, nil)
}

// PruneCaches makes room, and tells what went.
func (c *Client) PruneCaches(ctx context.Context, r CachePrune) ([]Cache, error) {
	var removed []Cache
	err := c.call(ctx, http.MethodPost, "/v1/caches/prune", r, &removed)
	return removed, err
}

// Images lists the images that are there by Berth.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var list []Image
	err := c.call(ctx, http.MethodGet, "/v1/images", nil, &list)
	return list, err
}

// RemoveImage removes an image that is not in use, by its name in containerd.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/images/remove", ImageRemoval{name}, nil)
}

// PruneImages makes room, and tells what went.
func (c *Client) PruneImages(ctx context.Context, r ImagePrune) ([]Image, error) {
	var removed []Image
	err := c.call(ctx, http.MethodPost, "/v1/images/prune", r, &removed)
	return removed, err
}

// Version asks who answers.
func (c *Client) Version(ctx context.Context) (*Version, error) {
	v := new(Version)
	if err := c.call(ctx, http.MethodGet, "/v1/version", nil, v); err != nil {
		return nil, err
	}
	return v, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read berthd's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// do sends a request and gives the body of a good answer.
func (c *Client) do(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://berthd"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if res.StatusCode < 300 {
		return res.Body, nil
	}
	defer res.Body.Close()
	e := Error{Status: res.StatusCode}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&e); err != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s %s: %s", method, path, res.Status)
	}
	return nil, e.Err()
}

// unreachable says what to do about a berthd that cannot be spoken with.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	hint := "look at berthd's log: journalctl -u berthd"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "berthd is not running, or listens elsewhere: systemctl start berthd, or name its socket with --socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "the socket is left over and no berthd listens behind it: systemctl restart berthd"
	case errors.Is(err, fs.ErrPermission):
		hint = "gitlab-runner runs as a user who may not use it: run it as root, or add the user to the socket's group"
	}
	return fmt.Errorf("reach berthd at %s: %w: %w (%s)", c.socket, errors.Unwrap(err), errdefs.ErrUnavailable, hint)
}
