package engine_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/docker/engine"
)

// serve answers at a socket, and counts connections.
func serve(t *testing.T, h http.HandlerFunc) (*engine.Engine, *atomic.Int32) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	var connections atomic.Int32
	s := &http.Server{Handler: h, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}}
	t.Cleanup(func() { s.Close() })
	go func() { _ = s.Serve(l) }()
	e := engine.New(socket)
	t.Cleanup(e.Close)
	return e, &connections
}

func TestCall(t *testing.T) {
	e, connections := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			text, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, `{"Got":%q,"Type":%q,"URI":%q}`, text, r.Header.Get("Content-Type"), r.RequestURI)
			return
		}
		// Long enough to come in chunks.
		fmt.Fprintf(w, `{"Got":%q}`+"\n", strings.Repeat("x", 1<<20))
	})
	var out struct{ Got, Type, URI string }
	require.NoError(t, e.Call(t.Context(), http.MethodPost, "/x", url.Values{"a": {"b c"}}, map[string]int{"n": 1}, &out))
	require.Equal(t, `{"n":1}`, out.Got)
	require.Equal(t, "application/json", out.Type)
	require.Equal(t, "/v"+engine.Version+"/x?a=b+c", out.URI)
	for range 10 {
		require.NoError(t, e.Call(t.Context(), http.MethodGet, "/x", nil, nil, &out))
		require.Len(t, out.Got, 1<<20)
		require.NoError(t, e.Call(t.Context(), http.MethodGet, "/x", nil, nil, nil))
	}
	require.EqualValues(t, 1, connections.Load(), "connections are not used again")
}

func TestFailure(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
		class  func(error) bool
	}{
		"message":  {http.StatusNotFound, `{"message":"No such container: x"}`, "No such container: x", errdefs.IsNotFound},
		"text":     {http.StatusConflict, "in use\n", "in use", errdefs.IsConflict},
		"nothing":  {http.StatusServiceUnavailable, "", "503 Service Unavailable", errdefs.IsUnavailable},
		"other":    {http.StatusBadRequest, `{"error":"x"}`, `{"error":"x"}`, errdefs.IsInvalidArgument},
		"redirect": {http.StatusFound, "", "302 Found", func(error) bool { return true }},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			err := e.Call(t.Context(), http.MethodGet, "/x", nil, nil, nil)
			var answered *engine.Error
			require.ErrorAs(t, err, &answered)
			require.Equal(t, c.want, answered.Message)
			require.Equal(t, c.status, answered.Status)
			require.True(t, c.class(err), err)
		})
	}
	e := engine.New(filepath.Join(t.TempDir(), "none.sock"))
	require.True(t, errdefs.IsUnavailable(e.Serving(t.Context())))
	require.True(t, errdefs.IsUnavailable(e.Call(t.Context(), http.MethodGet, "/x", nil, nil, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, e.Call(ctx, http.MethodGet, "/x", nil, nil, nil), context.Canceled)
}

func TestEvents(t *testing.T) {
	e, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Action":"start"}`+"\n"+`{"Action":"die"}`+"\n")
	})
	began, actions := false, []string{}
	err := e.Events(t.Context(), nil, func() { began = true }, func(raw json.RawMessage) {
		var event struct{ Action string }
		require.NoError(t, json.Unmarshal(raw, &event))
		actions = append(actions, event.Action)
	})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.True(t, began)
	require.Equal(t, []string{"start", "die"}, actions)
}

// TestHijack: what dockerd sends with the head of its answer is not lost.
func TestHijack(t *testing.T) {
	e, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nahead ")
		text, _ := io.ReadAll(rw) // until the client's side has ended
		_, _ = conn.Write([]byte(strings.ToUpper(string(text))))
	})
	r, err := engine.Request(t.Context(), http.MethodPost, "/attach", nil, nil)
	require.NoError(t, err)
	var got []byte
	require.NoError(t, e.Hijack(r, func(res *http.Response, conn net.Conn, ahead *bufio.Reader) error {
		require.Equal(t, http.StatusSwitchingProtocols, res.StatusCode)
		_, err := io.WriteString(conn, "sent")
		require.NoError(t, err)
		require.NoError(t, conn.(*net.UnixConn).CloseWrite())
		got, err = io.ReadAll(ahead)
		return err
	}))
	require.Equal(t, "ahead SENT", string(got))

	// An answer that is not wanted ends it.
	require.NoError(t, e.Hijack(r, func(*http.Response, net.Conn, *bufio.Reader) error { return nil }))
}
