package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"gitlab.com/berth-ci/berth/node/docker/engine"
	"gitlab.com/berth-ci/berth/node/relay"
)

// attach is POST /containers/{id}/attach.
func attach(c *call) error {
	id, _, err := c.theContainer()
	if err != nil {
		return err
	}
	return c.hijack(http.MethodPost, "/containers/"+id+"/attach", nil, "Upgrade")
}

// attachSocket is GET /containers/{id}/attach/ws.
func attachSocket(c *call) error {
	id, _, err := c.theContainer()
	if err != nil {
		return err
	}
	return c.hijack(http.MethodGet, "/containers/"+id+"/attach/ws", nil,
		"Upgrade", "Origin", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions")
}

// startExec is POST /exec/{id}/start.
func startExec(c *call) error {
	if err := c.exec(c.params[0]); err != nil {
		return err
	}
	var body container.ExecStartRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	path := "/exec/" + c.params[0] + "/start"
	if body.Detach {
		return c.pass(http.MethodPost, path, nil, body)
	}
	return c.hijack(http.MethodPost, path, body, "Upgrade")
}

// lasting passes on what takes long, or is much: the answer goes from one
// connection to the other as it is, which is the last on it, so that berthd is
// not needed for it. Calls that are short by what they ask for are not worth
// a connection.
func lasting(what string, short ...func(url.Values) bool) func(*call) error {
	return func(c *call) error {
		id, _, err := c.theContainer()
		if err != nil {
			return err
		}
		path := "/containers/" + id + what
		// HTTP/1.0 knows nothing of chunks.
		if !c.r.ProtoAtLeast(1, 1) || slices.ContainsFunc(short, func(f func(url.Values) bool) bool { return f(c.query) }) {
			return c.pass(c.r.Method, path, c.query, nil)
		}
		r, err := engine.Request(c.ctx, c.r.Method, c.version+path, c.query, nil)
		if err != nil {
			return fmt.Errorf("make request: %w", err)
		}
		r.Close = true
		return c.Engine.Hijack(r, func(res *http.Response, conn net.Conn, ahead *bufio.Reader) error {
			if res.StatusCode >= 400 {
				defer res.Body.Close()
				return engine.Failure(res)
			}
			res.Header.Set("Connection", "close")
			if len(res.TransferEncoding) > 0 {
				res.Header.Set("Transfer-Encoding", strings.Join(res.TransferEncoding, ", "))
			}
			return c.takeOver(res, conn, ahead, true)
		})
	}
}

// notFollowed tells of logs that are read once, as dockerd reads it.
func notFollowed(query url.Values) bool {
	switch strings.ToLower(strings.TrimSpace(query.Get("follow"))) {
	case "", "0", "no", "false", "none":
		return true
	}
	return false
}

// takeOver makes the client's connection one without HTTP, after the head of
// an answer, and joins it with dockerd's. It returns when the relay has both,
// or, if that cannot be, when the stream has ended.
func (c *call) takeOver(res *http.Response, daemon net.Conn, ahead *bufio.Reader, oneWay bool) error {
	c.begun = true
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	defer conn.Close()
	// The server's limits are for requests.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %s\r\n", res.Status)
	_ = res.Header.Write(&head) // to memory
	head.WriteString("\r\n")
	s := &relay.Stream{
		Client: conn, FromClient: engine.Ahead(rw.Reader),
		Backend: daemon, FromBackend: slices.Concat([]byte(head.String()), engine.Ahead(ahead)),
		OneWay: oneWay,
	}
	if plain, ok := conn.(interface{ Plain() (net.Conn, []byte) }); ok {
		if inner, more := plain.Plain(); inner != nil {
			s.Client, s.FromClient = inner, append(s.FromClient, more...)
		}
	}
	err = c.Streams.Join(c.ctx, c.job.Key, s)
	if err == nil || errors.Is(err, relay.ErrLost) {
		return err
	}
	c.log.WithError(err).WithField("call", c.r.Method+" "+c.path).Debug("a stream ends with berthd")
	defer context.AfterFunc(c.ctx, s.Close)() // the job ends
	s.Copy()
	return nil
}

// hijack makes the connection a stream, as dockerd does.
func (c *call) hijack(method, path string, body any, headers ...string) error {
	var reader io.Reader
	if body != nil {
		text, err := encode(body)
		if err != nil {
			return err
		}
		reader = text
	}
	r, err := engine.Request(c.ctx, method, c.version+path, c.query, reader)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, name := range headers {
		if v := c.r.Header.Get(name); v != "" {
			r.Header.Set(name, v)
			if name == "Upgrade" {
				r.Header.Set("Connection", "Upgrade")
			}
		}
	}
	return c.Engine.Hijack(r, func(res *http.Response, conn net.Conn, ahead *bufio.Reader) error {
		if res.StatusCode >= 400 {
			defer res.Body.Close()
			return engine.Failure(res)
		}
		if res.StatusCode != http.StatusSwitchingProtocols && !strings.HasPrefix(res.Header.Get("Content-Type"), "application/vnd.docker.") {
			return c.reply(res)
		}
		return c.takeOver(res, conn, ahead, false)
	})
}
