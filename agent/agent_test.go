package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// rootVariable makes the test binary an agent in the root directory that it
// names, in namespaces of its own.
const rootVariable = "BERTH_AGENT_TEST_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(rootVariable); root != "" {
		fmt.Fprintln(os.Stderr, contained(root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func contained(root string) error {
	if err := syscall.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	return Serve()
}

// startAgent gives the pid of an agent in a container of sorts: busybox, and
// namespaces for processes and mounts.
func startAgent(t *testing.T) (pid int, root string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make namespaces")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static: apt-get install busybox-static")
	}
	root = t.TempDir()
	require.NoError(t, os.Chmod(root, 0o755))
	for _, dir := range []string{"bin", "dev", "proc", "tmp", Dir} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	require.NoError(t, unix.Mknod(filepath.Join(root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	program, err := os.ReadFile(busybox)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	for _, name := range []string{"sh", "cat", "sleep", "id", "yes", "head", "dd", "touch", "setsid", "ls", "ps"} {
		require.NoError(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	require.NoError(t, os.Remove(filepath.Join(root, "bin/sh")))
	require.NoError(t, os.Link(filepath.Join(root, "bin/busybox"), filepath.Join(root, "bin/sh")))

	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = []string{rootVariable + "=" + root, "PATH=/bin", "HOME=/root"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	require.Eventually(t, func() bool {
		a, err := Connect(t.Context(), cmd.Process.Pid)
		if err == nil {
			a.Close()
		}
		return err == nil
	}, 10*time.Second, time.Millisecond)
	return cmd.Process.Pid, root
}

// runScript runs a script and gives what it printed.
func runScript(ctx context.Context, t *testing.T, pid int, script string, as *User) (stdout, stderr string, exit Exit, err error) {
	t.Helper()
	a, err := Connect(ctx, pid)
	require.NoError(t, err)
	defer a.Close()
	file := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(file, []byte(script), 0o600))
	in, err := os.Open(file)
	require.NoError(t, err)
	defer in.Close()
	outR, outW, err := os.Pipe()
	require.NoError(t, err)
	errR, errW, err := os.Pipe()
	require.NoError(t, err)
	read := func(r io.Reader, to *string, done chan<- struct{}) {
		b, _ := io.ReadAll(r)
		*to = string(b)
		close(done)
	}
	outDone, errDone := make(chan struct{}), make(chan struct{})
	go read(outR, &stdout, outDone)
	go read(errR, &stderr, errDone)
	exit, err = a.Run(ctx, Stage{Script: in, Stdout: outW, Stderr: errW, As: as})
	outW.Close()
	errW.Close()
	// Nothing but the agent may hold the streams now, or gitlab-runner
	// would wait for it.
	<-outDone
	<-errDone
	return stdout, stderr, exit, err
}

func TestRun(t *testing.T) {
	pid, _ := startAgent(t)
	for _, tt := range []struct {
		name, script, stdout, stderr string
		code                         int
	}{
		{"streams", "echo out; echo err >&2", "out\n", "err\n", 0},
		{"exit code", "exit 42", "", "", 42},
		{"killed shell", "kill -9 $$", "", "", 137},
		{"binary", `printf '\000\001\377\n'`, "\x00\x01\xff\n", "", 0},
		{"no newline at the end", "printf abc", "abc", "", 0},
		{"environment of the agent", "echo $PATH", "/bin\n", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, exit, err := runScript(t.Context(), t, pid, tt.script, nil)
			require.NoError(t, err)
			require.Equal(t, tt.code, exit.Code)
			require.Equal(t, tt.stdout, stdout)
			require.Equal(t, tt.stderr, stderr)
		})
	}
}

func TestRunLosesNoOutput(t *testing.T) {
	pid, _ := startAgent(t)
	const size = 100 << 20
	stdout, _, exit, err := runScript(t.Context(), t, pid, "yes 0123456789abcdef | head -c 104857600", nil)
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	want := bytes.Repeat([]byte("0123456789abcdef\n"), size/17+1)[:size]
	require.Equal(t, sha256.Sum256(want), sha256.Sum256([]byte(stdout)))
}

// A process that a stage leaves in the background neither holds the stage up
// nor dies of writing to a stream that is gone.
func TestRunLeavesBackgroundProcesses(t *testing.T) {
	pid, root := startAgent(t)
	stdout, _, exit, err := runScript(t.Context(), t, pid, `
(while [ ! -e /tmp/go ]; do sleep 0.01; done; echo late; echo late; touch /tmp/survived; sleep 1000) &
echo started`, nil)
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	require.Equal(t, "started\n", stdout)
	require.NoError(t, os.WriteFile(filepath.Join(root, "tmp/go"), nil, 0o644))
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(root, "tmp/survived"))
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
}

func TestRunAsAnotherUser(t *testing.T) {
	pid, root := startAgent(t)
	require.NoError(t, os.Mkdir(filepath.Join(root, "tmp/of-root"), 0o700))
	_, stderr, exit, err := runScript(t.Context(), t, pid, "set -e; touch /tmp/of-root/file $HOME/file; id -u >/tmp/uid", &User{UID: 1234, GID: 4321})
	require.NoError(t, err)
	require.Zero(t, exit.Code, stderr)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(root, "tmp/of-root/file"), &st))
	require.EqualValues(t, 1234, st.Uid)
	require.EqualValues(t, 4321, st.Gid)
	uid, err := os.ReadFile(filepath.Join(root, "tmp/uid"))
	require.NoError(t, err)
	require.Equal(t, "1234\n", string(uid))
}

func TestRunWithVariables(t *testing.T) {
	pid, _ := startAgent(t)
	a, err := Connect(t.Context(), pid)
	require.NoError(t, err)
	defer a.Close()
	script := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(script, []byte("[ \"$BERTH_CACHE_HIT_PIP\" = hit ] && [ \"$PATH\" = /bin ]"), 0o600))
	in, err := os.Open(script)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer out.Close()
	exit, err := a.Run(t.Context(), Stage{Script: in, Stdout: out, Stderr: out, Env: []string{"BERTH_CACHE_HIT_PIP=hit"}})
	require.NoError(t, err)
	require.Zero(t, exit.Code)
}

func TestCancelStopsTheStageAlone(t *testing.T) {
	pid, root := startAgent(t)
	_, _, _, err := runScript(t.Context(), t, pid, "setsid sh -c 'sleep 1000' & echo", nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(root, "tmp/running")); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, _, exit, err := runScript(ctx, t, pid, "trap 'exit 1' TERM; sleep 500 & touch /tmp/running; wait", nil)
	require.NoError(t, err)
	require.Equal(t, 1, exit.Code)
	stdout, _, _, err := runScript(t.Context(), t, pid, "ps", nil)
	require.NoError(t, err)
	require.NotContains(t, stdout, "sleep 500")
	require.Contains(t, stdout, "sleep 1000", "what a stage before left goes on")
}

func TestLostAgent(t *testing.T) {
	pid, root := startAgent(t)
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(root, "tmp/running")); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, _, _, err := runScript(t.Context(), t, pid, "touch /tmp/running; sleep 500", nil)
	require.ErrorIs(t, err, ErrLost)
}

// A job that may write where the agent's socket is must not lead berth to a
// socket of the node.
func TestConnectFollowsNoLinks(t *testing.T) {
	pid, root := startAgent(t)
	outside := filepath.Join(t.TempDir(), "victim.sock")
	l, err := net.Listen("unix", outside)
	require.NoError(t, err)
	defer l.Close()
	path := filepath.Join(root, socket)
	require.NoError(t, os.Remove(path))
	for _, target := range []string{outside, "../../../../../../../../../.." + outside} {
		require.NoError(t, os.Symlink(target, path))
		_, err = Connect(t.Context(), pid)
		require.Error(t, err)
		require.NoError(t, os.Remove(path))
	}
	require.NoError(t, os.WriteFile(path, []byte("no socket"), 0o600))
	_, err = Connect(t.Context(), pid)
	require.Error(t, err)
}

// An agent that answers nothing must not hold up berth for ever.
func TestConnectEndsWithItsContext(t *testing.T) {
	pid, root := startAgent(t)
	path := filepath.Join(root, socket)
	require.NoError(t, os.Remove(path))
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			cancel(errors.New("enough"))
			<-t.Context().Done()
		}
	}()
	_, err = Connect(ctx, pid)
	require.ErrorContains(t, err, "enough")
}

// Nor must one hold up the end of a cancelled job.
func TestRunEndsWithItsContext(t *testing.T) {
	pid, root := startAgent(t)
	path := filepath.Join(root, socket)
	require.NoError(t, os.Remove(path))
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(`{"shell":"/bin/sh"}` + "\n"))
		_, _ = conn.Read(make([]byte, 100))
		cancel()
		<-t.Context().Done()
	}()
	patience := stopPatience
	stopPatience = 10 * time.Millisecond
	defer func() { stopPatience = patience }()
	_, _, _, err = runScript(ctx, t, pid, "echo", nil)
	require.ErrorIs(t, err, ErrLost)
}

func TestConnectToNothing(t *testing.T) {
	cmd := exec.Command("true")
	require.NoError(t, cmd.Run())
	_, err := Connect(t.Context(), cmd.Process.Pid)
	require.ErrorIs(t, err, ErrLost)
}

// Processes of the container, whoever they are, get nothing from the agent.
func TestAgentServesOnlyTheNode(t *testing.T) {
	pid, root := startAgent(t)
	require.NoError(t, os.Chmod(filepath.Join(root, socket), 0o777))
	program := filepath.Join(root, "bin/inside")
	source := filepath.Join(t.TempDir(), "inside.go")
	require.NoError(t, os.WriteFile(source, []byte(strings.ReplaceAll(`package main

import (
	"fmt"
	"io"
	"net"
)

func main() {
	conn, err := net.Dial("unix", "SOCKET")
	if err != nil {
		panic(err)
	}
	b, err := io.ReadAll(conn)
	fmt.Println(len(b), err)
}
`, "SOCKET", socket)), 0o644))
	build := exec.Command("go", "build", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	stdout, stderr, exit, err := runScript(t.Context(), t, pid, "/bin/inside", nil)
	require.NoError(t, err)
	require.Zero(t, exit.Code, stderr)
	require.Equal(t, "0 <nil>\n", stdout)
}
