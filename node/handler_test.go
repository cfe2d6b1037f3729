package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// serve answers calls for the jobs of a bench.
func serve(t testing.TB, b *bench) (client *api.Client, socket string) {
	socket = filepath.Join(socketDir(t), "berthd.sock")
	l, err := listen(socket, os.Getgid())
	require.NoError(t, err)
	h := &handler{jobs: b.Jobs, gpus: b.keeper, log: b.log, about: api.Version{Berthd: "1.0"}}
	s := &http.Server{Handler: h.routes()}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return api.NewClient(socket), socket
}

// raw sends a request as it stands and gives the answer.
func raw(t testing.TB, socket, request string) (status int, body string) {
	c, err := net.Dial("unix", socket)
	require.NoError(t, err)
	defer c.Close()
	go func() { _, _ = io.WriteString(c, request) }()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(b)
}

func post(path, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

func TestClientAndServer(t *testing.T) {
	b := newBench(t, limited(time.Hour))
	client, _ := serve(t, b)
	v, err := client.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, "1.0", v.Berthd)
	jobs, err := client.Jobs(t.Context())
	require.NoError(t, err)
	require.Empty(t, jobs)

	events := make(chan api.Event, 100)
	watching, stopWatching := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() {
		watched <- client.Watch(watching, func(e api.Event) error { events <- e; return nil })
	}()
	require.Eventually(t, func() bool { b.Jobs.mu.Lock(); defer b.Jobs.mu.Unlock(); return len(b.watchers) == 1 }, 5*time.Second, time.Millisecond)

	first, second := request(t, 1, self(t)), request(t, 2, self(t))
	a, err := client.Admit(t.Context(), first, nil)
	require.NoError(t, err)
	again, err := client.Admission(t.Context(), a.Job)
	require.NoError(t, err)
	require.Equal(t, a, again)

	lines := make(chan string, 10)
	admitted := make(chan error, 1)
	go func() {
		_, err := client.Admit(context.Background(), second, func(line string) { lines <- line })
		admitted <- err
	}()
	require.Contains(t, <-lines, "place 1 of 1")
	require.NoError(t, client.Outcome(t.Context(), a.Job, api.Outcome{Stage: "build_script", Status: "success"}))
	require.NoError(t, client.Release(t.Context(), a.Job))
	require.NoError(t, <-admitted)
	jobs, err = client.Jobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, 1)

	stopWatching()
	require.ErrorIs(t, <-watched, context.Canceled)
	close(events)
	var states []string
	for e := range events {
		if e.Job.Key == a.Job {
			states = append(states, e.Job.State)
		}
	}
	require.Equal(t, []string{"waiting", "admitted", "admitted", "releasing", "released"}, states)
}

func TestClientGetsErrors(t *testing.T) {
	b := newBench(t, limited(time.Millisecond))
	client, _ := serve(t, b)
	_, err := client.Admission(t.Context(), "j1-0123abcd")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorIs(t, client.Outcome(t.Context(), "j1-0123abcd", api.Outcome{}), errdefs.ErrNotFound)
	require.ErrorIs(t, client.Release(t.Context(), "../../etc"), errdefs.ErrInvalidArgument)
	require.NoError(t, client.Release(t.Context(), "j1-0123abcd"))

	r := request(t, 1, self(t))
	r.Profile = "none"
	_, err = client.Admit(t.Context(), r, nil)
	var build *executor.BuildFailure
	require.True(t, errors.As(err, &build), err)

	_, err = client.Admit(t.Context(), request(t, 1, self(t)), nil)
	require.NoError(t, err)
	other, _ := otherRunner(t)
	_, err = client.Admit(t.Context(), request(t, 1, other), nil)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	_, err = client.Admit(t.Context(), request(t, 2, self(t)), func(string) {})
	require.ErrorIs(t, err, errdefs.ErrUnavailable, "no berth in time, said on a stream that may have begun")
}

func TestClientGoesAway(t *testing.T) {
	b := newBench(t, limited(time.Hour))
	client, _ := serve(t, b)
	_, err := client.Admit(t.Context(), request(t, 1, self(t)), nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = client.Admit(ctx, request(t, 2, self(t)), func(string) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	b.gone(t, request(t, 2, self(t)).Request.Job.Key())
	require.Len(t, b.List(), 1)
}

func TestServerRefuses(t *testing.T) {
	b := newBench(t, plain)
	_, socket := serve(t, b)
	for name, c := range map[string]struct {
		request string
		status  int
		says    string
	}{
		"unknown call":   {"GET /v2/jobs HTTP/1.1\r\nHost: x\r\n\r\n", 404, "this berthd has no GET /v2/jobs"},
		"other method":   {"DELETE /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n", 404, "this berthd has no DELETE"},
		"not JSON":       {post("/v1/jobs/admit", "profile=x"), 400, "invalid character"},
		"unknown field":  {post("/v1/jobs/admit", `{"profil":"x"}`), 400, `unknown field`},
		"wrong type":     {post("/v1/jobs/admit", `{"profile":1}`), 400, "profile"},
		"two values":     {post("/v1/jobs/admit", `{}{}`), 400, "more follows"},
		"cut off":        {post("/v1/jobs/admit", `{"profile":`), 400, "unexpected EOF"},
		"no job":         {post("/v1/jobs/admit", `{"profile":"default"}`), 400, "positive"},
		"too large":      {post("/v1/jobs/admit", `{"profile":"`+strings.Repeat("x", maxBody)+`"}`), 400, "too large"},
		"job of no form": {post("/v1/jobs/..%2f..%2fetc/release", ""), 400, "expected a job's key"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := raw(t, socket, c.request)
			require.Equal(t, c.status, status, body)
			var e api.Error
			require.NoError(t, json.Unmarshal([]byte(body), &e), body)
			require.Contains(t, e.Message, c.says)
			require.Equal(t, c.status, e.Status)
		})
	}
	b.empty(t)
}

func TestServerLivesThroughFaults(t *testing.T) {
	for _, step := range []string{"take", "hold", "put names"} {
		b := newBench(t, plain)
		client, _ := serve(t, b)
		b.on = func(s string) error {
			if s == step {
				panic("fault in " + s)
			}
			return nil
		}
		_, err := client.Admit(t.Context(), request(t, 1, self(t)), nil)
		require.ErrorIs(t, err, errdefs.ErrInternal)
		require.ErrorContains(t, err, "fault in "+step)
		b.fail("", nil)
		_, err = client.Admit(t.Context(), request(t, 1, self(t)), nil)
		require.NoError(t, err)
	}
}
