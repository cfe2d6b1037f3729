package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// daemon is a berthd process.
type daemon struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // valid when exited
}

// StartDaemon starts berthd, as Start did, and returns when it serves.
func (n *Node) StartDaemon(ctx context.Context) error {
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open berthd's log: %w", err)
	}
	defer log.Close() // the process has its own
	at, err := log.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("open berthd's log: %w", err)
	}
	d := &daemon{cmd: exec.Command(n.programs.Berthd, "--config", n.configFile()), exited: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Dir = "/"
	// A Ctrl-C is for the caller, who then stops the node.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start berthd: %w", err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	n.daemon = d

	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it did not serve in time"))
	defer cancel()
	serving := make(chan error, 1)
	go func() { serving <- n.serving(ctx) }()
	select {
	case err := <-serving:
		if err == nil {
			return nil
		}
		return fmt.Errorf("start berthd: %w\n%s", err, n.logFrom(at))
	case <-d.exited:
		n.daemon = nil
		return fmt.Errorf("start berthd: it ended: %w\n%s", d.err, n.logFrom(at))
	}
}

// serving waits until berthd answers.
func (n *Node) serving(ctx context.Context) error {
	for {
		if _, err := n.Client.Version(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// LogFile is where berthd logs.
func (n *Node) LogFile() string { return filepath.Join(n.dir, "berthd.log") }

// Log is what berthd has logged.
func (n *Node) Log() string { return string(n.logFrom(0)) }

func (n *Node) logFrom(offset int64) []byte {
	text, err := os.ReadFile(n.LogFile())
	if err != nil {
		return nil
	}
	return text[min(offset, int64(len(text))):]
}

// StopDaemon ends berthd in peace. Jobs go on.
func (n *Node) StopDaemon(ctx context.Context) error {
	d := n.daemon
	n.daemon = nil
	if d == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it did not end in time"))
	defer cancel()
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // else it has ended, and says how
	select {
	case <-d.exited:
		if d.err != nil {
			return fmt.Errorf("stop berthd: %w\n%s", d.err, n.logFrom(0))
		}
		return nil
	case <-ctx.Done():
		_ = d.cmd.Process.Kill()
		<-d.exited
		return fmt.Errorf("stop berthd: %w\n%s", context.Cause(ctx), n.logFrom(0))
	}
}

// KillDaemon ends berthd as a crash does.
func (n *Node) KillDaemon() error {
	d := n.daemon
	n.daemon = nil
	if d == nil {
		return nil
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill berthd: %w", err)
	}
	<-d.exited
	return nil
}
