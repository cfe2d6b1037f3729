package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
)

// shell holds a new process until its pid is on record. If the supervisor
// dies before that, read fails and the program is never executed.
const (
	shell = "/bin/sh"
	gate  = `read -r go && exec "$0" "$@" </dev/null`
)

// record is what the pid file holds.
type record struct {
	api.Process
	Boot string `json:"boot"`
	Exe  file   `json:"exe"`
	// Log is where in the log file the process began.
	Log int64 `json:"log"`
}

// file tells one file from another that was put in its place.
type file struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

func identify(path string) (file, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return file{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return file{Device: s.Dev, Inode: s.Ino}, nil
}

// bootID changes with every boot; pids and start times begin again then.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// process is a run of a program: a child, or an adopted one.
type process struct {
	record
	os   *os.Process
	done chan struct{} // closed when it has ended
	how  string        // it ended; valid then
	// watch is the pidfd of a process that is not a child.
	watch *os.File
}

// start executes the program in a session of its own.
func (p Program) start() (_ *process, err error) {
	r := record{}
	if r.Exe, err = identify(p.Path); err != nil {
		return nil, err
	}
	if r.Boot, err = bootID(); err != nil {
		return nil, err
	}
	log, err := openLog(p.LogFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if r.Log, err = log.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	hold, release, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer release.Close()
	cmd := exec.Command(shell, append([]string{"-c", gate, p.Path}, p.Args...)...)
	cmd.Env, cmd.Dir = p.Env, p.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = hold, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	hold.Close()
	if err != nil {
		return nil, err
	}
	run := &process{os: cmd.Process, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // what there is to know is in ProcessState
		run.how = cmd.ProcessState.String()
		close(run.done)
	}()
	if r.Process, err = api.FindProcess(cmd.Process.Pid); err == nil {
		run.record = r
		err = p.write(r)
	}
	if err == nil {
		_, err = release.WriteString("go\n")
	}
	if err != nil {
		release.Close()
		<-run.done
		return nil, err
	}
	return run, nil
}

// write puts a record into the pid file, whole or not at all.
func (p Program) write(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	next := p.PIDFile + ".new"
	if err := os.WriteFile(next, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(next, p.PIDFile)
}

// read gives the pid file's record, nil if there is none of this boot.
func (p Program) read() (*record, error) {
	b, err := os.ReadFile(p.PIDFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s is no pid file of berthd's: %w", p.PIDFile, err)
	}
	boot, err := bootID()
	if err != nil || r.Boot != boot {
		return nil, err
	}
	return r, nil
}

// find gives the running process of the pid file, nil if it is gone.
func (p Program) find(ctx context.Context) (*process, error) {
	r, err := p.read()
	if err != nil || r == nil {
		return nil, err
	}
	// Both handles are opened before the process is verified, so that they
	// are not those of another process with the same pid.
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil, nil
		}
		return nil, fmt.Errorf("watch process %d: %w", r.PID, err)
	}
	watch := os.NewFile(uintptr(fd), "pidfd")
	handle, err := os.FindProcess(r.PID)
	if err != nil {
		watch.Close()
		return nil, nil //nolint:nilerr // it is gone
	}
	run := &process{record: *r, os: handle, done: make(chan struct{}), watch: watch}
	exe, err := run.exe()
	if !r.Alive() || err != nil {
		run.forget()
		return nil, nil //nolint:nilerr // it is gone
	}
	go run.poll()
	if sh, err := identify(shell); exe != r.Exe && err == nil && exe == sh {
		// Its supervisor was killed before the program was executed.
		defer run.forget()
		return nil, run.kill(ctx)
	}
	if exe != r.Exe {
		run.forget()
		return nil, fmt.Errorf("process %d, which %s names, no longer runs %s: end it, or remove the file", r.PID, p.PIDFile, p.Name)
	}
	return run, nil
}

// reaped waits until the last process is gone altogether: until its parent
// has reaped it, its pid looks alive to the next one.
func (p Program) reaped(ctx context.Context) error {
	r, err := p.read()
	if err != nil || r == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.StopTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := api.FindProcess(r.PID); err != nil || now != r.Process {
			return nil //nolint:nilerr // it is gone
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d is dead but not reaped: %w", r.PID, ctx.Err())
		case <-tick.C:
		}
	}
}

func (p *process) exe() (file, error) { return identify(fmt.Sprintf("/proc/%d/exe", p.PID)) }

// executed tells whether the process is past the gate.
func (p *process) executed(context.Context) error {
	if exe, err := p.exe(); err != nil || exe != p.Exe {
		return errors.New("not executed yet")
	}
	return nil
}

// poll waits for the end of an adopted process, or for forget.
func (p *process) poll() {
	defer p.forget()
	raw, err := p.watch.SyscallConn()
	if err != nil {
		return // forgotten already
	}
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
	if err == nil {
		p.how = "no longer there"
		close(p.done)
	}
}

// forget releases what watches an adopted process.
func (p *process) forget() {
	if p.watch != nil {
		p.watch.Close()
	}
}

// end asks the process to end and waits; in the end it kills it.
func (p *process) end(ctx context.Context, grace time.Duration) error {
	if err := p.os.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return p.kill(ctx)
	}
}

// kill ends the process, whether ctx is cancelled or not.
func (p *process) kill(ctx context.Context) error {
	if err := p.os.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d outlives SIGKILL: the kernel waits in it, perhaps for a disk", p.PID)
	}
}
