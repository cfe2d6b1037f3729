package docker

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// raw sends bytes to a socket and reads all that comes back until the other
// side ends or has said nothing for a while.
func raw(t *testing.T, socket, text string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	defer conn.Close()
	_, _ = io.WriteString(conn, text) // it may be refused before all is sent
	var all strings.Builder
	b := make([]byte, 64<<10)
	for {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		n, err := conn.Read(b)
		all.Write(b[:n])
		if err != nil {
			return all.String()
		}
	}
}

// TestSmuggling has a job wrap a call about another's container into one of its
// own, in all ways in which servers differ in what they take for a call. What
// dockerd alone would say shows that there is something to be had.
func TestSmuggling(t *testing.T) {
	victim := hold(t, "default", gitlab.JobSpec{})
	attacker := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other")})
	busybox := registry.Image(images.Busybox)
	victim.pull(busybox)
	id := victim.must("run", "-d", "--name", "victim", "-e", "PASSWORD=hunter2", busybox, "sleep", "1000")
	inside := fmt.Sprintf("GET /v1.51/containers/%s/json HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n", id)
	require.Contains(t, raw(t, bare(), inside), "hunter2")

	attacker.must("run", "-d", "--name", "mine", busybox, "sleep", "1000")
	_, text := attacker.api("POST", "/containers/mine/exec", `{"Cmd":["cat"],"AttachStdin":true,"AttachStdout":true}`)
	exec := field(t, text, "Id")
	start := `{"Detach":false}`
	for name, text := range map[string]string{
		"pipelined":             "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n" + inside,
		"both lengths":          "POST /containers/mine/wait HTTP/1.1\r\nHost: docker\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inside,
		"length, chunks":        fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 5+len(inside)) + inside,
		"two lengths":           fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n", len(inside)) + inside,
		"chunked by tab":        "POST /containers/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding:\tchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + inside,
		"other encoding":        "POST /containers/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: xchunked\r\n\r\n" + inside,
		"encoding twice":        "POST /containers/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inside,
		"space before colon":    "POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Length : 3\r\n\r\n" + inside,
		"folded header":         "GET /_ping HTTP/1.1\r\nHost: docker\r\nX-Registry-Auth: a\r\n GET /containers/" + id + "/json\r\n\r\n" + inside,
		"bare line feeds":       "GET /_ping HTTP/1.1\nHost: docker\n\n" + inside,
		"body of a GET":         fmt.Sprintf("GET /containers/mine/json HTTP/1.1\r\nHost: docker\r\nContent-Length: %d\r\n\r\n", len(inside)) + inside,
		"HTTP/1.0":              "GET /_ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + inside,
		"whole address":         "GET http://docker/containers/" + id + "/json HTTP/1.1\r\nHost: docker\r\n\r\n",
		"as a proxy":            "CONNECT /containers/" + id + "/json HTTP/1.1\r\nHost: docker\r\n\r\n" + inside,
		"other host":            "GET /containers/" + id + "/json HTTP/1.1\r\nHost: localhost:2375\r\n\r\n",
		"line feed in the path": "GET /containers/mine%0d%0a" + id + "/json HTTP/1.1\r\nHost: docker\r\n\r\n",
		"line feed in a name":   "POST /containers/mine/rename?name=x%20HTTP/1.1%0d%0a%0d%0aGET%20/containers/" + id + "/json HTTP/1.1\r\nHost: docker\r\n\r\n",
		"method override":       "GET /containers/mine/json HTTP/1.1\r\nHost: docker\r\nX-HTTP-Method-Override: POST\r\nX-Original-URL: /containers/" + id + "/json\r\n\r\n",
		// What follows an answer whose connection is passed on as it is.
		"after an archive": "GET /containers/mine/archive?path=/etc/passwd HTTP/1.1\r\nHost: docker\r\n\r\n" + inside,
		"after an export":  "GET /containers/mine/export HTTP/1.1\r\nHost: docker\r\nConnection: keep-alive\r\n\r\n" + inside,
		"after no archive": "GET /containers/mine/archive?path=/none HTTP/1.1\r\nHost: docker\r\n\r\n" + inside,
		"after an attach":  "POST /containers/none/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n" + inside,
		"after no exec":    fmt.Sprintf("POST /exec/%s/start HTTP/1.1\r\nHost: docker\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", strings.Repeat("0", 64), len(start)) + start + inside,
		"after an HEAD":    "HEAD /containers/mine/archive?path=/etc/passwd HTTP/1.1\r\nHost: docker\r\n\r\n" + inside,
		"h2c":              "GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + inside,
		"h2c, attach":      "POST /containers/mine/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inside,
		"websocket":        "GET /containers/mine/json HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + inside,
		"a bare version":   "GET /v1.51 HTTP/1.1\r\nHost: docker\r\n\r\n" + inside,
	} {
		t.Run(name, func(t *testing.T) {
			answer := raw(t, attacker.socket(), text)
			require.NotContains(t, answer, "hunter2")
			require.NotContains(t, answer, victim.admission.Job)
			if name != "h2c, attach" && name != "websocket" {
				require.NotContains(t, answer, " 101 ")
			}
		})
	}
	// An exec's stream goes to the process, and ends with it.
	answer := raw(t, attacker.socket(), fmt.Sprintf("POST /exec/%s/start HTTP/1.1\r\nHost: docker\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", exec, len(start))+start+inside)
	require.Contains(t, answer, " 101 ")
	require.Contains(t, answer, "GET /v1.51/containers/"+id) // cat's
	require.NotContains(t, answer, "hunter2")
	victim.must("exec", "victim", "true")
}

// TestHTTP2 has a job speak HTTP/2 from the first byte, which dockerd takes.
func TestHTTP2(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	ask := func(socket, path string) (int, string, error) {
		tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}
		defer tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(r)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return res.StatusCode, string(text), err
	}
	status, text, err := ask(bare(), "/info")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, text, "DockerRootDir")
	for _, path := range []string{"/info", "/v1.51/containers/json?all=1", "/_ping"} {
		_, text, _ := ask(j.socket(), path) // BuildKit's errors, in gRPC
		require.NotContains(t, text, "DockerRootDir")
		require.NotContains(t, text, "Id")
	}
}

// TestFlood has a job send more than anybody needs; others do not notice.
func TestFlood(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	bystander := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other")})
	for name, body := range map[string]string{
		"large":     `{"Image":"` + strings.Repeat("x", 9<<20) + `"}`,
		"deep":      `{"Labels":` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + `}`,
		"many":      `{"Cmd":[` + strings.Repeat(`[],`, 1<<20) + `[]]}`,
		"many keys": `{"Labels":{` + strings.Repeat(`"a":{},`, 1<<20) + `"a":{}}}`,
	} {
		status, answer := j.api("POST", "/containers/create", body)
		require.Contains(t, []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge}, status, "%s: %s", name, tail(answer))
	}
	status, answer := j.api("GET", "/containers/json?filters="+strings.Repeat("%5B", 100_000), "")
	require.Equal(t, http.StatusBadRequest, status, tail(answer))
	require.Contains(t, raw(t, j.socket(), "GET /_ping HTTP/1.1\r\nHost: docker\r\nX: "+strings.Repeat("x", 4<<20)+"\r\n\r\n"), " 431 ")

	// Connections that never come to a point: more than the endpoint takes.
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for i := range 1200 {
		conn, err := net.DialTimeout("unix", j.socket(), time.Second)
		if err != nil {
			break // the queue of the socket is full, too
		}
		open = append(open, conn)
		text := "GET /_ping HTTP/1.1\r\nHost: docker\r\nX: "
		if i%2 == 0 {
			text = "POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
		}
		_, err = io.WriteString(conn, text)
		require.NoError(t, err)
	}
	require.Greater(t, len(open), 900)
	require.Contains(t, bystander.must("version", "-f", "{{.Server.Version}}"), "29.")
	all, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, all)
	for _, c := range open {
		c.Close()
	}
	open = nil
	require.Eventually(t, func() bool { _, err := j.docker("version"); return err == nil }, time.Minute, 100*time.Millisecond)
}

// TestChunks has a body without an end be given up at what anybody needs.
func TestChunks(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	conn, err := net.Dial("unix", j.socket())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(conn, "POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.NoError(t, err)
	go func() {
		piece := fmt.Sprintf("%x\r\n%s\r\n", 1<<20, strings.Repeat(" ", 1<<20))
		for range 1000 {
			if _, err := io.WriteString(conn, piece); err != nil {
				return
			}
		}
	}()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Contains(t, []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge}, res.StatusCode)
}
