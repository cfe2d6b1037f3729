package docker

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/node/relay"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// background is a docker client that goes on beside the test.
type background struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{}

	mu       sync.Mutex
	out, err bytes.Buffer
}

// Write is what the client says to stdout.
func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *background) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

// begin starts a docker client with the job's endpoint.
func (j *job) begin(args ...string) *background {
	t := j.t.(*testing.T)
	t.Helper()
	return beginWith(t, "unix://"+j.socket(), args...)
}

func beginWith(t *testing.T, host string, args ...string) *background {
	t.Helper()
	b := &background{t: t, cmd: exec.Command(cli, args...), exited: make(chan struct{})}
	b.cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+filepath.Join(scratch, "docker-config"))
	b.cmd.Stdout, b.cmd.Stderr = b, &b.err
	var err error
	b.stdin, err = b.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, b.cmd.Start())
	go func() { _ = b.cmd.Wait(); close(b.exited) }() // how is in ProcessState
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.exited
	})
	return b
}

// code waits for the client's end.
func (b *background) code() int {
	b.t.Helper()
	select {
	case <-b.exited:
	case <-time.After(time.Minute):
		b.t.Fatalf("%v goes on: %s", b.cmd.Args[1:], b.said())
	}
	if b.err.Len() > 0 {
		b.t.Logf("%v: %s", b.cmd.Args[1:], b.err.String())
	}
	return b.cmd.ProcessState.ExitCode()
}

func eventually(t *testing.T, met func() bool) {
	t.Helper()
	require.Eventually(t, met, time.Minute, 10*time.Millisecond)
}

// holding is what the relay has of a job.
func holding(t *testing.T, key string) relay.Holding {
	t.Helper()
	all, err := relay.NewClient(node.RelaySocket()).List(t.Context())
	require.NoError(t, err)
	return all[key]
}

// numbers prints lines until a file is there, and ends with a code.
const numbers = `i=0; until [ -e /given/$0 ]; do i=$((i+1)); echo $i; usleep 2000; done; i=$((i+1)); echo $i last; exit 5`

// counted looks whether no line is missing.
func counted(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		want := fmt.Sprint(i + 1)
		if i == len(lines)-1 {
			want += " last"
		}
		require.Equal(t, want, line)
	}
}

// TestAway has everything that jobs do with docker go on while berthd is
// killed, or stopped, and started again.
func TestAway(t *testing.T) {
	for _, end := range []string{"killed", "stopped"} {
		t.Run(end, func(t *testing.T) {
			away(t, func() {
				if end == "killed" {
					require.NoError(t, node.KillDaemon())
				} else {
					require.NoError(t, node.StopDaemon(t.Context()))
				}
			})
		})
	}
}

func away(t *testing.T, end func()) {
	busybox := registry.Image(images.Busybox)
	j := hold(t, "default", gitlab.JobSpec{Script: []string{
		// In the job, at the socket whose file is bound.
		`docker -H unix:///var/run/docker.sock pull -q ` + busybox,
		`{ docker -H unix:///var/run/docker.sock run --name inside -v /builds:/given ` + busybox + ` sh -c '` + numbers + `' end >/builds/inside || echo $? >/builds/inside-code; } &`,
		// One that is made and not started yet is waited for no longer than one that has ended.
		`{ until [ -s /builds/inside ]; do sleep 0.1; done; docker -H unix:///var/run/docker.sock wait inside; } >/builds/waited &`,
		`{ until [ -e /builds/call ]; do sleep 0.1; done; for host in unix:///var/run/docker.sock unix:///run/berth/docker.sock tcp://docker:2375; do docker -H $host ps -q --no-trunc && echo $host; done; } >/builds/called 2>&1 &`,
	}})
	at := func(name string) string { return filepath.Join(j.admission.Dirs.Builds, name) }
	read := func(name string) string { text, _ := os.ReadFile(at(name)); return string(text) }
	touch := func(name string) { require.NoError(t, os.WriteFile(at(name), nil, 0o644)) }

	foreground := j.begin("run", "--rm", "--name", "foreground", "-v", "/builds:/given", busybox, "sh", "-c", numbers, "end")
	eventually(t, func() bool {
		return strings.Contains(foreground.said(), "\n10\n") && strings.Contains(read("inside"), "\n10\n")
	})
	logs := j.begin("logs", "-f", "foreground")
	exec := j.begin("exec", "-i", "foreground", "cat")
	fmt.Fprintln(exec.stdin, "one")
	attached := j.begin("attach", "--no-stdin", "foreground")
	waits := j.begin("wait", "foreground")
	events := j.begin("events")
	eventually(t, func() bool {
		return strings.Contains(exec.said(), "one\n") && strings.Contains(logs.said(), "\n10\n") && attached.said() != ""
	})
	// Of ours those of run (2), logs, exec, attach (2) and wait, and of
	// the job's those of run (2) and wait.
	eventually(t, func() bool { return holding(t, j.admission.Job).Streams == 10 })
	inode := inodeOf(t, j.socket())

	end()
	before := [...]int{len(foreground.said()), len(logs.said()), len(attached.said()), len(read("inside"))}
	fmt.Fprintln(exec.stdin, "two")
	eventually(t, func() bool {
		return strings.Contains(exec.said(), "two\n") && len(foreground.said()) > before[0]+100 &&
			len(logs.said()) > before[1]+100 && len(attached.said()) > before[2]+100 && len(read("inside")) > before[3]+100
	})
	require.NotEqual(t, 0, events.code()) // is rewritten
	// Calls wait.
	touch("call")
	ours := j.begin("ps", "-q", "--no-trunc")
	conn := j.dialTCP(t)
	_, err := io.WriteString(conn, "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
	require.NoError(t, err)
	select {
	case <-ours.exited:
		t.Fatalf("a call was answered while there was no berthd: %s%s", ours.said(), ours.err.String())
	default:
	}

	require.NoError(t, node.StartDaemon(t.Context()))
	require.Equal(t, 0, ours.code())
	require.NotEmpty(t, ours.said())
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Equal(t, inode, inodeOf(t, j.socket()))
	eventually(t, func() bool { return strings.Contains(read("called"), "tcp://docker:2375") })
	require.Contains(t, read("called"), "\nunix:///var/run/docker.sock\n")
	require.Contains(t, read("called"), "\nunix:///run/berth/docker.sock\n")
	fmt.Fprintln(exec.stdin, "three")
	require.NoError(t, exec.stdin.Close())
	require.Equal(t, 0, exec.code())
	require.Equal(t, "one\ntwo\nthree\n", exec.said())

	touch("end")
	require.Equal(t, 5, foreground.code())
	counted(t, foreground.said())
	require.Equal(t, 0, logs.code())
	require.Equal(t, foreground.said(), logs.said())
	require.Equal(t, 5, attached.code())
	require.True(t, strings.HasSuffix(foreground.said(), attached.said()))
	require.Equal(t, 0, waits.code())
	require.Equal(t, "5\n", waits.said())
	eventually(t, func() bool { return read("inside-code") == "5\n" })
	counted(t, read("inside"))
	eventually(t, func() bool { return read("waited") == "5\n" })
	// What --rm removed is gone for Berth, too.
	eventually(t, func() bool {
		out, err := j.docker("ps", "-aq", "--filter", "name=foreground")
		return err == nil && out == ""
	})

	eventually(t, func() bool { return holding(t, j.admission.Job).Streams == 0 })
	require.NotEmpty(t, holding(t, j.admission.Job).Sockets)
	j.release()
	eventually(t, func() bool { return holding(t, j.admission.Job).Sockets == nil })
	awaitLeft(t, j.admission.Job)
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var s unix.Stat_t
	require.NoError(t, unix.Stat(path, &s))
	return s.Ino
}

// dialTCP connects with the job's docker by its network.
func (j *job) dialTCP(t *testing.T) (conn net.Conn) {
	t.Helper()
	require.NoError(t, namespace.Do(j.admission.Network.Netns, func() (err error) {
		conn, err = net.Dial("tcp4", j.admission.Network.Address.String()+":2375")
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestReleasedStreams ends a job that has streams.
func TestReleasedStreams(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	run := j.begin("run", busybox, "sh", "-c", "echo up; sleep 1000")
	eventually(t, func() bool { return run.said() == "up\n" })
	require.NotZero(t, holding(t, j.admission.Job).Streams)
	j.release()
	require.NotEqual(t, 0, run.code())
	eventually(t, func() bool { h := holding(t, j.admission.Job); return h.Streams == 0 && len(h.Sockets) == 0 })
}

// TestRelayKilled has the relay killed: the job's docker is there still, also
// after the next restart of berthd.
func TestRelayKilled(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	socket := node.RelaySocket()
	v, err := relay.NewClient(socket).Version(t.Context())
	require.NoError(t, err)
	sockets := holding(t, j.admission.Job)
	require.NoError(t, unix.Kill(v.PID, unix.SIGKILL))
	eventually(t, func() bool {
		all, err := relay.NewClient(socket).List(context.WithoutCancel(t.Context()))
		return err == nil && len(all[j.admission.Job].Sockets) == len(sockets.Sockets)
	})
	inode := inodeOf(t, j.socket())
	j.must("version")
	require.NoError(t, node.KillDaemon())
	require.NoError(t, node.StartDaemon(t.Context()))
	j.must("version")
	require.Equal(t, inode, inodeOf(t, j.socket()))

	// Both at once: other sockets are made.
	v, err = relay.NewClient(socket).Version(t.Context())
	require.NoError(t, err)
	require.NoError(t, node.KillDaemon())
	require.NoError(t, unix.Kill(v.PID, unix.SIGKILL))
	require.NoError(t, node.StartDaemon(t.Context()))
	j.must("version")
	require.NotEqual(t, inode, inodeOf(t, j.socket()))
}
