package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/docker/engine"
	"gitlab.com/berth-ci/berth/node/docker/strict"
)

// call is a request of a job's.
type call struct {
	*Proxy
	ctx     context.Context
	w       http.ResponseWriter
	r       *http.Request
	op      *operation
	version string // "/v1.51", or nothing
	path    string
	params  []string
	query   url.Values
	begun   bool
	// ref is what the job calls the container that the call is about.
	ref, refID string
}

// theContainer resolves the container that the call is about.
func (c *call) theContainer() (string, *containerRecord, error) {
	id, record, err := c.containerRecord(c.params[0])
	c.ref, c.refID = c.params[0], id
	if err != nil {
		c.ref = ""
	}
	return id, record, err
}

// finish lets what the call makes be made and noted even if the caller goes
// away, or the job ends: a release waits for it.
func (c *call) finish() { c.ctx = context.WithoutCancel(c.ctx) }

// decode reads the body into one of moby's types. Of a job only so many are
// read at once, however slowly they come.
func (c *call) decode(into any) error {
	select {
	case c.bodies <- struct{}{}:
		defer func() { <-c.bodies }()
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	return strict.Decode(http.MaxBytesReader(c.w, c.r.Body, maxBody), into)
}

// send sends a request to dockerd, in the API version that the job speaks. The
// answer is one that dockerd meant well, or an error.
func (c *call) send(method, path string, query url.Values, body any) (*http.Response, error) {
	var reader io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case stream:
		reader, kind = b.Reader, b.kind
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		reader, kind = bytes.NewReader(text), "application/json"
	}
	r, err := engine.Request(c.ctx, method, c.version+path, query, reader)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	if auth := c.r.Header.Get("X-Registry-Auth"); auth != "" && c.op.treatment == passed {
		r.Header.Set("X-Registry-Auth", auth)
	}
	res, err := c.Engine.Do(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 400 {
		defer res.Body.Close()
		return nil, engine.Failure(res)
	}
	return res, nil
}

// stream is a body that is passed on as it comes: an archive.
type stream struct {
	io.Reader
	kind string
}

// pass sends a request to dockerd and its answer to the job.
func (c *call) pass(method, path string, query url.Values, body any) error {
	res, err := c.send(method, path, query, body)
	if err != nil {
		return err
	}
	return c.reply(res)
}

// reply passes an answer on, at once as it comes.
func (c *call) reply(res *http.Response) error {
	defer res.Body.Close()
	c.headers(res.Header)
	c.begin(res.StatusCode)
	if c.r.Method == http.MethodHead {
		return nil
	}
	var to io.Writer = c.w
	if res.ContentLength < 0 {
		to = &flushing{c.w, http.NewResponseController(c.w)}
		_ = http.NewResponseController(c.w).Flush()
	}
	_, err := engine.Copy(to, res.Body)
	return err
}

// headers are the answer's, but for those of the connection.
func (c *call) headers(h http.Header) {
	for name, values := range h {
		switch name {
		case "Connection", "Upgrade", "Transfer-Encoding", "Keep-Alive", "Date":
		default:
			c.w.Header()[name] = values
		}
	}
}

func (c *call) begin(status int) {
	c.begun = true
	c.w.WriteHeader(status)
}

// flushing sends what is written at once.
type flushing struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (f *flushing) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// ask asks dockerd for something in JSON, as it is in the version that the job
// speaks.
func (c *call) ask(method, path string, query url.Values, body any) (any, head, error) {
	res, err := c.send(method, path, query, body)
	if err != nil {
		return nil, head{}, err
	}
	defer res.Body.Close()
	var v any
	if err := engine.Decode(res, &v, true); err != nil {
		return nil, head{}, fmt.Errorf("read the docker daemon's answer: %w: %w", err, errdefs.ErrInternal)
	}
	return v, head{res.StatusCode, res.Header}, nil
}

// head is what comes before the body of an answer.
type head struct {
	StatusCode int
	Header     http.Header
}

// answer sends JSON: in one piece, which is quicker than by and by.
func (c *call) answer(status int, v any) error {
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	c.begin(status)
	_, err := c.w.Write(text.Bytes())
	return err
}

// rewritten asks dockerd, changes the answer and passes it on.
func (c *call) rewritten(path string, change func(any) any) error {
	return c.rewrittenBy(path, func(v any) (any, error) { return change(v), nil })
}

// rewrittenBy is rewritten by what may fail.
func (c *call) rewrittenBy(path string, change func(any) (any, error)) error {
	v, res, err := c.ask(c.r.Method, path, c.query, nil)
	if err != nil {
		return err
	}
	if v, err = change(v); err != nil {
		return err
	}
	c.headers(res.Header)
	return c.answer(res.StatusCode, v)
}

// messages sends lines of JSON as they come, and begins with the first. They
// may come from several goroutines: layers are pushed side by side.
func (c *call) messages() func(any) {
	control := http.NewResponseController(c.w)
	encoder := json.NewEncoder(c.w)
	var mu sync.Mutex
	return func(v any) {
		mu.Lock()
		defer mu.Unlock()
		if !c.begun {
			c.w.Header().Set("Content-Type", "application/json")
			c.begin(http.StatusOK)
		}
		if encoder.Encode(v) == nil {
			_ = control.Flush() // who does not read it has gone
		}
	}
}

func escape(id string) string { return url.PathEscape(id) }

func encode(v any) (io.Reader, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return bytes.NewReader(text), nil
}
