package builds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
)

// handleBuild does what clients without BuildKit ask for (DOCKER_BUILDKIT=0) as a build of the Dockerfile frontend.
func (e *Endpoint) handleBuild(w http.ResponseWriter, r *http.Request) {
	attrs, err := legacyAttrs(r.URL.Query())
	if err != nil {
		answerError(w, http.StatusBadRequest, err.Error())
		return
	}
	ctx, done, ok := e.during(r.Context())
	if !ok {
		answerError(w, http.StatusServiceUnavailable, errClosed.Error())
		return
	}
	defer done()
	rc := http.NewResponseController(w)
	if attrs["context"] == "" {
		body := &body{r: r.Body}
		url, drop := e.transport.put(body)
		defer func() {
			drop()
			// A build that fails may be reading still, and the request must not be read after its answer.
			_ = rc.SetReadDeadline(time.Unix(1, 0))
			body.end()
		}()
		attrs["context"] = url
	}
	c, err := e.client(ctx)
	if err != nil {
		answerError(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer c.Close()
	_ = rc.EnableFullDuplex() // the context is read while steps are told
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Connection", "close") // what is left of the context is not read
	out := &lines{enc: json.NewEncoder(w), flush: rc.Flush}
	names := r.URL.Query()["t"]
	updates := make(chan *client.SolveStatus)
	var told sync.WaitGroup
	told.Go(func() { out.follow(updates) })
	res, err := c.Solve(ctx, nil, client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs,
		Exports: []client.ExportEntry{{Type: exporterMoby, Attrs: map[string]string{"name": strings.Join(names, ",")}}},
	}, updates)
	told.Wait()
	if err != nil {
		out.say(map[string]any{"error": err.Error(), "errorDetail": map[string]string{"message": err.Error()}})
		return
	}
	id := res.ExporterResponse["containerimage.digest"]
	out.say(map[string]any{"aux": map[string]string{"ID": id}})
	short := strings.TrimPrefix(id, "sha256:")
	out.stream("Successfully built " + short[:min(12, len(short))] + "\n")
	for _, n := range names {
		out.stream("Successfully tagged " + n + "\n")
	}
}

// body is a request's, until its end.
type body struct {
	mu    sync.Mutex
	r     io.Reader
	ended bool
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, fmt.Errorf("the build's context is gone: %w", errdefs.ErrAborted)
	}
	return b.r.Read(p)
}

func (b *body) Close() error { return nil }

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}

// client is one of the endpoint itself.
func (e *Endpoint) client(ctx context.Context) (*client.Client, error) {
	return client.New(ctx, "", client.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		near, far := net.Pipe()
		go e.ServeConn(far)
		return near, nil
	}))
}

// legacyAttrs are the parameters of docker's API as the frontend's. What has no counterpart there is an error where it would
// change the image or what the build may do, and else left out, as dockerd's BuildKit does.
func legacyAttrs(q url.Values) (map[string]string, error) {
	attrs := map[string]string{"image-resolve-mode": "local"}
	for param, attr := range map[string]string{"dockerfile": "filename", "target": "target", "platform": "platform", "remote": "context"} {
		if v := q.Get(param); v != "" {
			attrs[attr] = v
		}
	}
	if isTrue(q.Get("nocache")) {
		attrs["no-cache"] = ""
	}
	if isTrue(q.Get("pull")) {
		attrs["image-resolve-mode"] = "pull"
	}
	for param, prefix := range map[string]string{"buildargs": "build-arg:", "labels": "label:"} {
		values := map[string]*string{}
		if v := q.Get(param); v != "" {
			if err := json.Unmarshal([]byte(v), &values); err != nil {
				return nil, fmt.Errorf("read %s: %w: %w", param, err, errdefs.ErrInvalidArgument)
			}
		}
		for k, v := range values {
			if v != nil {
				attrs[prefix+k] = *v
			}
		}
	}
	switch mode := q.Get("networkmode"); mode {
	case "", "default", "bridge":
	case "none", "host":
		attrs["force-network-mode"] = mode
	default:
		return nil, fmt.Errorf("network mode %q is not for builds: %w", mode, errdefs.ErrInvalidArgument)
	}
	if hosts := q.Get("extrahosts"); hosts != "" {
		var list []string
		if err := json.Unmarshal([]byte(hosts), &list); err != nil {
			return nil, fmt.Errorf("read extrahosts: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		for i, h := range list {
			name, ip, _ := strings.Cut(h, ":")
			list[i] = name + "=" + ip
		}
		attrs["add-hosts"] = strings.Join(list, ",")
	}
	if isTrue(q.Get("squash")) {
		return nil, errors.Join(errors.New("squash is not supported by BuildKit"), errdefs.ErrInvalidArgument)
	}
	return attrs, nil
}

func isTrue(v string) bool {
	b, err := strconv.ParseBool(v)
	return err == nil && b
}

// lines is the answer, a line of JSON each.
type lines struct {
	mu    sync.Mutex
	enc   *json.Encoder
	flush func() error
}

func (l *lines) say(v any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.enc.Encode(v) // a client that is gone ends the build by its context
	_ = l.flush()
}

func (l *lines) stream(text string) { l.say(map[string]string{"stream": text}) }

func (l *lines) follow(updates <-chan *client.SolveStatus) {
	seen := map[string]bool{}
	for u := range updates {
		for _, v := range u.Vertexes {
			if v.Started != nil && !seen[v.Digest.String()] {
				seen[v.Digest.String()] = true
				l.stream("---> " + v.Name + "\n")
			}
		}
		for _, line := range u.Logs {
			l.stream(string(line.Data))
		}
	}
}
