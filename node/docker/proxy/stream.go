package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"gitlab.com/berth-ci/berth/node/docker/engine"
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

// download passes on what a container has much of: an archive. The answer goes
// from one connection to the other as it is, which is the last on it.
func download(what string) func(*call) error {
	return func(c *call) error {
		id, _, err := c.theContainer()
		if err != nil {
			return err
		}
		r, err := engine.Request(c.ctx, http.MethodGet, c.version+"/containers/"+id+what, c.query, nil)
		if err != nil {
			return fmt.Errorf("make request: %w", err)
		}
		r.Close = true
		return c.Engine.Hijack(r, func(res *http.Response) (net.Conn, io.Reader, error) {
			if res.StatusCode >= 400 {
				defer res.Body.Close()
				return nil, nil, engine.Failure(res)
			}
			res.Header.Set("Connection", "close")
			if len(res.TransferEncoding) > 0 {
				res.Header.Set("Transfer-Encoding", strings.Join(res.TransferEncoding, ", "))
			}
			return c.takeOver(res)
		})
	}
}

// takeOver makes the client's connection one without HTTP, after the head of
// an answer.
func (c *call) takeOver(res *http.Response) (net.Conn, io.Reader, error) {
	c.begun = true
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the connection: %w", err)
	}
	// The server's limits are for requests.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, nil, err
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %s\r\n", res.Status)
	_ = res.Header.Write(&head) // to memory
	head.WriteString("\r\n")
	if _, err := io.WriteString(conn, head.String()); err != nil {
		conn.Close()
		return nil, nil, err
	}
	context.AfterFunc(c.ctx, func() { conn.Close() }) // the job ends
	// Not by the server's reader, which takes the end of what the client sends
	// for the end of the call.
	return conn, engine.Ahead(rw.Reader, conn), nil
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
	return c.Engine.Hijack(r, func(res *http.Response) (net.Conn, io.Reader, error) {
		if res.StatusCode >= 400 {
			defer res.Body.Close()
			return nil, nil, engine.Failure(res)
		}
		if res.StatusCode != http.StatusSwitchingProtocols && !strings.HasPrefix(res.Header.Get("Content-Type"), "application/vnd.docker.") {
			return nil, nil, c.reply(res)
		}
		return c.takeOver(res)
	})
}
