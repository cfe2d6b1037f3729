package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// Names of lanes.
const (
	bare   = "bare"
	berth  = "berth"
	docker = "docker"
)

// lane is one way to run jobs, with a runner of its own.
type lane struct {
	name    string
	tag     string
	server  *gitlab.Server
	builds  string // where the bare executor leaves what others remove
	process *runner.Process
	results *os.File // a pipe from the stand-in; nil for a real gitlab-runner
	decoder *json.Decoder
}

func openLane(srv *gitlab.Server, name, tag, program, dir string, r runner.Runner) (_ *lane, err error) {
	l := &lane{name: name, tag: tag, server: srv}
	args := []string{}
	if tag == name { // the stand-in
		fifo := filepath.Join(dir, "results")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			return nil, fmt.Errorf("make pipe for results: %w", err)
		}
		// For writing, too: then there is always a writer, and no end.
		if l.results, err = os.OpenFile(fifo, os.O_RDWR, 0); err != nil {
			return nil, fmt.Errorf("open pipe for results: %w", err)
		}
		l.decoder = json.NewDecoder(l.results)
		args = append(args, "--results", fifo)
	}
	config := runner.Config{Concurrent: many, CheckInterval: 1, Runners: []runner.Runner{r}}
	if l.process, err = runner.Start(program, dir, config, []string{"TMPDIR=" + dir}, args...); err != nil {
		return nil, errors.Join(err, l.results.Close())
	}
	return l, nil
}

// enqueue makes a job for the lane.
func (l *lane) enqueue(spec gitlab.JobSpec) (*gitlab.Job, error) {
	spec.Tags = []string{l.tag}
	return l.server.Enqueue(spec)
}

// gate makes jobs wait for a job that no runner takes until open is called, so
// that the lane's runner sees all of them at the same moment.
func (l *lane) gate(specs []gitlab.JobSpec) (open func(), err error) {
	gate, err := l.server.Enqueue(gitlab.JobSpec{
		Project: specs[0].Project, Name: "gate", Script: []string{"true"}, Tags: []string{"nobody"},
	})
	if err != nil {
		return nil, err
	}
	for i := range specs {
		specs[i].Needs, specs[i].When = []*gitlab.Job{gate}, "always"
	}
	return gate.Cancel, nil
}

// run runs jobs at once. Of a real gitlab-runner it is not known what took how
// long, only the whole as GitLab sees it.
func (l *lane) run(ctx context.Context, specs []gitlab.JobSpec) ([]runner.Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("jobs took more than two minutes"))
	defer cancel()
	if l.builds != "" {
		if err := os.RemoveAll(l.builds); err != nil {
			return nil, fmt.Errorf("remove what earlier jobs left: %w", err)
		}
	}
	open, err := l.gate(specs)
	if err != nil {
		return nil, err
	}
	jobs := make([]*gitlab.Job, len(specs))
	for i, spec := range specs {
		if jobs[i], err = l.enqueue(spec); err != nil {
			return nil, err
		}
	}
	open()
	results := make([]runner.Result, len(specs))
	for i, j := range jobs {
		state, err := j.Wait(ctx)
		if err == nil && state != gitlab.Success {
			err = fmt.Errorf("%s: %s", state, j.FailureReason())
		}
		if err != nil {
			log, _ := os.ReadFile(l.process.LogFile)
			return nil, fmt.Errorf("run job in lane %s: %w\n%s\nrunner:\n%s", l.tag, err, j.Log(), log)
		}
		if l.results == nil {
			results[i] = runner.Result{JobID: j.ID, Took: j.Duration()}
		} else if results[i], err = l.result(); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// result is the next that the stand-in writes, which it does once GitLab knows
// of the job's end.
func (l *lane) result() (r runner.Result, err error) {
	if err := l.results.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return r, fmt.Errorf("read result: %w", err)
	}
	if err := l.decoder.Decode(&r); err != nil {
		return r, fmt.Errorf("read result: %w", err)
	}
	return r, nil
}

// close ends the runner, which has no jobs unless it is interrupted.
func (l *lane) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("the runner's jobs did not end"))
	defer cancel()
	err := l.process.Stop(ctx)
	if l.results != nil {
		err = errors.Join(err, l.results.Close())
	}
	return err
}
