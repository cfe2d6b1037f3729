package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLost says that the agent went away while a stage ran: the container
// ended, or something in it killed the agent.
var ErrLost = errors.New("the container ended while the stage ran")

// stopPatience is how long the agent has to end a stage that is to stop; it
// needs stopGrace at most.
var stopPatience = stopGrace + 5*time.Second

// Agent is a connection to the agent of a container, good for one stage.
type Agent struct {
	// User is whom the agent runs as: the image's user, or whom its
	// entrypoint changed to.
	User User
	// Shell is the shell that runs scripts; empty when the image has none.
	Shell string

	conn *net.UnixConn
	in   *bufio.Reader
}

// Connect reaches the agent in the container whose main process is pid.
//
// The path is resolved within the container's root, and what is connected to
// is a socket that exists there, so that a job which replaces the agent's
// socket by a link leads berth nowhere else.
func Connect(ctx context.Context, pid int) (*Agent, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			err = errors.Join(ErrLost, err) // it is just ending
		}
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(socket, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("find the agent's socket: %w", err)
	}
	defer unix.Close(fd)
	conn, err := new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	a := &Agent{conn: conn.(*net.UnixConn), in: bufio.NewReader(conn)}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(past) })
	var h hello
	err = a.receive(&h)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet the agent: %w", err)
	}
	a.User, a.Shell = User{UID: h.UID, GID: h.GID}, h.Shell
	return a, nil
}

// Close lets go of the agent; a stage that still runs is stopped by it.
func (a *Agent) Close() error { return a.conn.Close() }

// Stage is a script to run.
type Stage struct {
	// Script is read by the shell as its standard input.
	Script *os.File
	Stdout *os.File
	Stderr *os.File
	// As is whom to run as, if not as the agent itself.
	As *User
	// Env are variables beside those of the agent: "NAME=value".
	Env []string
}

// Exit is how a stage ended.
type Exit struct {
	// Code is the shell's exit status, 128 and the signal's number if one
	// ended it.
	Code   int
	Signal int
}

// Run runs a stage to its end. When ctx ends, the stage is asked to end, then
// forced; Run returns once it has. All its output has then been written. An
// agent that does not say so in time, since the job has stopped it, is lost.
func (a *Agent) Run(ctx context.Context, s Stage) (Exit, error) {
	if err := send(a.conn, start{User: s.As, Env: s.Env}, s.Script, s.Stdout, s.Stderr); err != nil {
		return Exit{}, fmt.Errorf("start stage: %w", errors.Join(ErrLost, err))
	}
	defer context.AfterFunc(ctx, func() {
		_ = a.conn.SetDeadline(time.Now().Add(stopPatience))
		_ = send(a.conn, stop{})
	})()
	var end ended
	if err := a.receive(&end); err != nil {
		return Exit{}, errors.Join(ErrLost, err)
	}
	if end.Error != "" {
		return Exit{}, errors.New(end.Error)
	}
	return Exit{Code: end.Code, Signal: end.Signal}, nil
}

func (a *Agent) receive(message any) error {
	line, err := a.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, message)
}
