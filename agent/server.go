package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a stage may take to end by itself after SIGTERM; less
// than the runner's graceful_kill_timeout in the example config.
const stopGrace = 10 * time.Second

var (
	never time.Time
	past  = time.Unix(1, 0)
)

// Serve is the agent: it runs until the container ends.
func Serve() error {
	// The container ends by SIGKILL; other signals are not for the agent. They
	// are caught, not ignored, since scripts would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	a := &server{reaper: newReaper()}
	awaitReader()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for stages: %w", err)
	}
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return fmt.Errorf("accept a stage: %w", err)
		}
		go a.serve(conn)
	}
}

// awaitReader waits until what the image's entrypoint has printed is read, for
// the log to have it when the agent can be connected to. A reader that is that
// slow is not worth more than a second.
func awaitReader() {
	for range 1000 {
		unread := 0
		for _, fd := range []int{1, 2} {
			if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil {
				unread += n
			}
		}
		if unread == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

type server struct{ reaper *reaper }

func (a *server) serve(conn *net.UnixConn) {
	defer conn.Close()
	if !fromOutside(conn) {
		return
	}
	out := json.NewEncoder(conn)
	shell, _ := findShell() // looked for again, and its lack reported, by the stage
	if err := out.Encode(hello{UID: os.Getuid(), GID: os.Getgid(), Shell: shell}); err != nil {
		return
	}
	var request start
	files, err := receive(conn, &request)
	if errors.Is(err, io.EOF) {
		return // the caller only wanted to know whether the agent is there
	}
	end := ended{}
	if err == nil {
		end, err = a.run(conn, request, files)
	}
	if err != nil {
		end.Error = err.Error()
	}
	_ = out.Encode(end)
}

// fromOutside tells whether the peer is a process of the node: one of the
// container would be seen with its pid here, one outside its pid namespace has
// none. A job can thus not use an agent that runs as root.
func fromOutside(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	outside := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		outside = err == nil && cred.Pid == 0
	})
	return err == nil && outside
}

// run runs one stage to its end, or stops it when asked to or when the caller
// goes away.
func (a *server) run(conn *net.UnixConn, request start, files []*os.File) (ended, error) {
	if len(files) != 3 {
		closeAll(files)
		return ended{}, fmt.Errorf("start stage: expected 3 file descriptors, got %d", len(files))
	}
	script, streams := files[0], [2]*stream{}
	defer script.Close()
	shell, err := findShell()
	if err != nil {
		closeAll(files[1:])
		return ended{}, err
	}
	for i := range streams {
		if streams[i], err = newStream(files[1+i]); err != nil {
			closeAll(files[1+i:])
			if i > 0 {
				streams[0].discard()
			}
			return ended{}, err
		}
	}
	attr := &syscall.ProcAttr{
		Env:   append(os.Environ(), request.Env...),
		Files: []uintptr{script.Fd(), streams[0].write.Fd(), streams[1].write.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if u := request.User; u != nil && (u.UID != os.Getuid() || u.GID != os.Getgid()) {
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
		attr.Sys.AmbientCaps = fileCapabilities()
		attr.Env = slices.DeleteFunc(attr.Env, func(entry string) bool { return strings.HasPrefix(entry, "HOME=") })
		attr.Env = append(attr.Env, "HOME="+homeOf(*u))
	}
	pid, exit, err := a.reaper.start(shell, []string{shell}, attr)
	if err != nil {
		streams[0].discard()
		streams[1].discard()
		return ended{}, fmt.Errorf("start %s: %w", shell, err)
	}
	for _, s := range streams {
		s.copy()
	}
	status := a.await(conn, pid, exit)
	for _, s := range streams {
		s.finish()
	}
	if status.Signaled() {
		return ended{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}, nil
	}
	return ended{Code: status.ExitStatus()}, nil
}

// homeOf is a home directory for a user whom the image does not know. Without
// one git, for which access(2) counts, complains of root's. Its settings, by
// which helper images set up git-lfs, hold for the user, too.
func homeOf(u User) string {
	home := filepath.Join(os.TempDir(), fmt.Sprintf("home-%d", u.UID))
	if os.Mkdir(home, 0o700) != nil {
		return home
	}
	const settings = ".gitconfig"
	if text, err := os.ReadFile(filepath.Join(os.Getenv("HOME"), settings)); err == nil {
		_ = os.WriteFile(filepath.Join(home, settings), text, 0o600)
		_ = os.Lchown(filepath.Join(home, settings), u.UID, u.GID)
	}
	_ = os.Lchown(home, u.UID, u.GID)
	return home
}

// fileCapabilities are those of the capabilities to handle other users' files
// that the agent has itself. To give files away is none of them, so that what
// an archive holds belongs to the user who unpacks it.
func fileCapabilities() (caps []uintptr) {
	var data [2]unix.CapUserData
	if unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]) != nil {
		return nil
	}
	for _, c := range []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER} {
		if data[0].Permitted&(1<<c) != 0 {
			caps = append(caps, c)
		}
	}
	return caps
}

// await waits for the stage's shell. Any word from the caller, and its going
// away too, means stop.
func (a *server) await(conn *net.UnixConn, pid int, exit <-chan syscall.WaitStatus) syscall.WaitStatus {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_, _ = conn.Read(make([]byte, 1))
	}()
	select {
	case status := <-exit:
		return status
	case <-stopped:
	}
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case status := <-exit:
		// What the shell started and did not wait for gets no grace.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return status
	case <-time.After(stopGrace):
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return <-exit
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
