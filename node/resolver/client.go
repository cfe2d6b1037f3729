package resolver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
)

// Client controls a resolver. While there is none, calls fail with
// errdefs.ErrUnavailable.
type Client struct {
	http http.Client
}

// NewClient returns a client for the resolver at a socket. It connects when
// it is used.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Put makes a job's zone what z says; it may be called again with other names.
func (c *Client) Put(ctx context.Context, job string, z Zone) error {
	return c.call(ctx, http.MethodPut, "zones/"+url.PathEscape(job), z, nil)
}

// Delete ends a job's zone and releases its namespace. One that does not exist
// is no error.
func (c *Client) Delete(ctx context.Context, job string) error {
	return c.call(ctx, http.MethodDelete, "zones/"+url.PathEscape(job), nil, nil)
}

// List returns all zones by job.
func (c *Client) List(ctx context.Context) (map[string]Zone, error) {
	var all map[string]Zone
	err := c.call(ctx, http.MethodGet, "zones", nil, &all)
	return all, err
}

// Version asks which resolver answers.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.call(ctx, http.MethodGet, "version", nil, &v)
	return v, err
}

// Close drops idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("write resolver request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://resolver/v1/"+path, body)
	if err != nil {
		return fmt.Errorf("write resolver request: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("call resolver: %w", context.Cause(ctx))
		}
		return fmt.Errorf("call resolver: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		var f failure
		if err := json.NewDecoder(res.Body).Decode(&f); err != nil {
			f.Error = res.Status
		}
		return fmt.Errorf("resolver: %s: %w", f.Error, errhttp.ToNative(res.StatusCode))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("read resolver reply: %w", err)
	}
	return nil
}
