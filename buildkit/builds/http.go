package builds

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"regexp"
	"time"
)

// headerSession is where clients name their session.
const headerSession = "X-Docker-Expose-Session-Uuid"

var version = regexp.MustCompile(`^/v[0-9]+(?:\.[0-9]+)?/`)

// Handler answers what docker's API has of builds: POST /session and /grpc, which become BuildKit's API, and /build. Their
// connections are taken over, so its server must be one of HTTP/1.
func (e *Endpoint) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /session", e.handleSession)
	mux.HandleFunc("POST /grpc", e.handleGRPC)
	mux.HandleFunc("POST /build", e.handleBuild)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := version.FindString(r.URL.Path); v != "" {
			r = r.Clone(r.Context())
			r.URL.Path = r.URL.Path[len(v)-1:]
		}
		mux.ServeHTTP(w, r)
	})
}

// answerError is as dockerd says it.
func answerError(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}

// during ends a request with the endpoint, and the endpoint not before it.
func (e *Endpoint) during(ctx context.Context) (_ context.Context, done func(), ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, nil, false
	}
	e.serves.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(errClosed) })
	return ctx, func() { stop(); cancel(nil); e.serves.Done() }, true
}

func (e *Endpoint) handleSession(w http.ResponseWriter, r *http.Request) {
	if v := r.Header.Values(headerSession); len(v) != 1 || !e.service.claims.claim(v[0], e.job.Key) {
		answerError(w, http.StatusForbidden, "the session is not of this job")
		return
	}
	ctx, done, ok := e.during(r.Context())
	if !ok {
		answerError(w, http.StatusServiceUnavailable, errClosed.Error())
		return
	}
	defer done()
	if err := e.sessions.HandleHTTPRequest(ctx, w, r); err != nil {
		answerError(w, http.StatusBadRequest, err.Error())
	}
}

func (e *Endpoint) handleGRPC(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "h2c" {
		answerError(w, http.StatusBadRequest, "expected an upgrade to h2c")
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answerError(w, http.StatusInternalServerError, "this connection cannot be taken over")
		return
	}
	if err = c.SetDeadline(time.Time{}); err == nil {
		_, err = c.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
	}
	if err != nil {
		c.Close()
		return
	}
	e.ServeConn(read{c, rw.Reader})
}

// read is a connection of which something is read already.
type read struct {
	net.Conn
	r *bufio.Reader
}

func (c read) Read(b []byte) (int, error) {
	if c.r.Buffered() > 0 {
		return c.r.Read(b)
	}
	return c.Conn.Read(b)
}
