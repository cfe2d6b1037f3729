package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"
)

const (
	buildFailure  = 1
	systemFailure = 2
)

// process is one call of an executor's program.
type process struct {
	program        string
	args           []string
	dir            string // working directory and TMPDIR
	payloadFile    string
	exitCodeFile   string
	env            []string // after the runner's own and the contract's
	stdout, stderr io.Writer
	graceful       time.Duration
	force          time.Duration
}

// run starts the program in a process group of its own. When ctx ends the
// group gets SIGTERM, then SIGKILL; a process that outlives that is given up.
func (p process) run(ctx context.Context) error {
	cmd := exec.Command(p.program, p.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, p.stdout, p.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(os.Environ(),
		"TMPDIR="+p.dir,
		api.BuildFailureExitCodeVariable+"="+strconv.Itoa(buildFailure),
		api.SystemFailureExitCodeVariable+"="+strconv.Itoa(systemFailure),
		api.BuildCodeFileVariable+"="+p.exitCodeFile,
		api.JobResponseFileVariable+"="+p.payloadFile)
	cmd.Env = append(cmd.Env, p.env...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("failed to start command: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- p.outcome(cmd.Wait()) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// A group that is gone already is about to be reported by done.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	select {
	case err := <-done:
		return err
	case <-time.After(p.graceful):
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	select {
	case err := <-done:
		return err
	case <-time.After(p.force):
		return fmt.Errorf("failed to kill process PID=%d, likely process is dormant", cmd.Process.Pid)
	}
}

// outcome reads an exit code by the contract: 1 is the job's failure, with the
// job's exit code in a file; 2 and all others are the system's.
func (p process) outcome(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	switch code := exit.ExitCode(); code {
	case systemFailure:
		return err
	case buildFailure:
	default:
		return unknownFailure(code, err)
	}
	content, errRead := os.ReadFile(p.exitCodeFile)
	if errRead != nil {
		return &buildError{err: err, exitCode: buildFailure}
	}
	line, _, _ := strings.Cut(string(content), "\n")
	code, errParse := strconv.Atoi(strings.TrimSuffix(line, "\r"))
	if errParse != nil {
		return unknownFailure(systemFailure, err)
	}
	return &buildError{err: fmt.Errorf("exit status %d", code), exitCode: code}
}

func unknownFailure(code int, err error) error {
	return fmt.Errorf("unknown Custom executor executable exit code %d; executable execution terminated with: %w", code, err)
}
