// Package engine speaks with a docker daemon over its socket: plain calls for
// berthd's own use, and requests that are passed on with their streams. It
// decides nothing.
package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
)

// Version of the API that berthd's own calls use.
const Version = "1.44"

// Engine is a docker daemon.
type Engine struct {
	socket    string
	transport *http.Transport
}

// New makes the client of the daemon at a unix socket. It connects with the
// first call.
func New(socket string) *Engine {
	e := &Engine{socket: socket}
	e.transport = &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return e.Dial(ctx) },
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
	}
	return e
}

// Close drops idle connections.
func (e *Engine) Close() { e.transport.CloseIdleConnections() }

// Dial opens a connection of its own.
func (e *Engine) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", e.socket)
}

// Request makes a request. The path is escaped already, and begins with the
// version where one counts.
func Request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Request, error) {
	target := "http://docker" + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	return http.NewRequestWithContext(ctx, method, target, body)
}

// Do sends a request.
func (e *Engine) Do(r *http.Request) (*http.Response, error) {
	res, err := e.transport.RoundTrip(r)
	if err != nil {
		if r.Context().Err() != nil {
			return nil, context.Cause(r.Context())
		}
		return nil, fmt.Errorf("reach the docker daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	return res, nil
}

// Call makes a call of berthd's own. In and out may be nil.
func (e *Engine) Call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("docker %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(text)
	}
	r, err := Request(ctx, method, "/v"+Version+path, query, body)
	if err != nil {
		return fmt.Errorf("docker %s %s: %w", method, path, err)
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := e.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 && res.StatusCode != http.StatusNotModified {
		return fmt.Errorf("docker %s %s: %w", method, path, Failure(res))
	}
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	if err := Decode(res, out, false); err != nil {
		return fmt.Errorf("docker %s %s: read answer: %w", method, path, err)
	}
	return nil
}

// Decode reads an answer of one JSON value, to its end: only then can the
// connection be used again. Numbers may be left as they are written.
func Decode(res *http.Response, into any, numbers bool) error {
	d := json.NewDecoder(res.Body)
	if numbers {
		d.UseNumber()
	}
	if err := d.Decode(into); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, res.Body)
	return err
}

// Failure reads the error that dockerd answers.
func Failure(res *http.Response) error {
	var e struct {
		Message string `json:"message"`
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil || json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = string(bytes.TrimSpace(text))
	}
	if e.Message == "" {
		e.Message = res.Status
	}
	class := errhttp.ToNative(res.StatusCode)
	return &Error{Message: e.Message, Status: res.StatusCode, class: class}
}

// Error is what dockerd answered.
type Error struct {
	Message string
	Status  int
	class   error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.class }

// Serving returns nil if the daemon answers.
func (e *Engine) Serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := Request(ctx, http.MethodGet, "/_ping", nil, nil)
	if err != nil {
		return err
	}
	res, err := e.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the docker daemon does not serve: %s: %w", res.Status, errdefs.ErrUnavailable)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// Events calls each for every event of dockerd until ctx ends or the stream
// breaks. Began is called once the stream is open.
func (e *Engine) Events(ctx context.Context, query url.Values, began func(), each func(json.RawMessage)) error {
	r, err := Request(ctx, http.MethodGet, "/v"+Version+"/events", query, nil)
	if err != nil {
		return err
	}
	res, err := e.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("docker events: %w", Failure(res))
	}
	began()
	d := json.NewDecoder(res.Body)
	for {
		var event json.RawMessage
		if err := d.Decode(&event); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("docker events: %w", err)
		}
		each(event)
	}
}
