package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Real is the gitlab-runner to test with: the one that the variable
// GITLAB_RUNNER names, else the one on the PATH, else none.
func Real() string {
	program := os.Getenv("GITLAB_RUNNER")
	if program == "" {
		program, _ = exec.LookPath("gitlab-runner") // empty if there is none
	}
	if abs, err := filepath.Abs(program); program != "" && err == nil {
		return abs
	}
	return program
}

// Program returns the runner to test with: a real one if there is one, else
// the stand-in, built into dir.
func Program(ctx context.Context, dir string) (string, error) {
	if program := Real(); program != "" {
		return program, nil
	}
	return Build(ctx, dir)
}

// Build builds the stand-in into dir.
func Build(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "runner")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, "gitlab.com/berth-ci/berth/test/cmd/runner")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build runner: %w: %s", err, out)
	}
	return program, nil
}

// Process is a runner that asks for jobs, real or stand-in.
type Process struct {
	LogFile string // of the runner itself
	cmd     *exec.Cmd
	done    chan struct{} // closed at its end, with err set
	err     error
}

// Start runs a program with a configuration that it writes into dir. Further
// arguments and the environment, which is added to the caller's, are optional.
func Start(program, dir string, config Config, env []string, args ...string) (*Process, error) {
	file := filepath.Join(dir, "config.toml")
	if err := config.Write(file); err != nil {
		return nil, err
	}
	p := &Process{LogFile: filepath.Join(dir, "runner.log"), done: make(chan struct{})}
	log, err := os.Create(p.LogFile)
	if err != nil {
		return nil, fmt.Errorf("create runner's log: %w", err)
	}
	defer log.Close() // the process has its own
	p.cmd = exec.Command(program, append([]string{"run", "--config", file}, args...)...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	p.cmd.Env = append(os.Environ(), env...)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start runner: %w", err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the runner's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop lets the runner finish the jobs that it has and waits for its end;
// when ctx ends first, it is killed.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop runner: %w", err)
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), p.Kill())
	}
}

// Kill ends the runner as a crash does, and its jobs are lost.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill runner: %w", err)
	}
	<-p.done
	return nil
}
