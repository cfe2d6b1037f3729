package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner/docker"
	"gitlab.com/berth-ci/berth/test/runner/job"
	"gitlab.com/berth-ci/berth/test/runner/script"
)

// Result is how a job ended.
type Result struct {
	JobID         int64  `json:"job_id"`
	State         string `json:"state"` // success or failed
	FailureReason string `json:"failure_reason,omitempty"`
	ExitCode      int    `json:"exit_code,omitempty"`
	Error         string `json:"error,omitempty"`
	// Took is everything from the receipt of the job to the end of cleanup.
	Took  time.Duration `json:"took"`
	Calls []Call        `json:"calls"`
}

// Call is one call of the executor.
type Call struct {
	Name string        `json:"name"` // config, prepare, run STAGE or cleanup
	Took time.Duration `json:"took"`
}

// Timing are the waits that gitlab-runner has fixed values for.
type Timing struct {
	PrepareRetry time.Duration // between tries of prepare
	StageRetry   time.Duration // between tries of a stage
	GiveUp       time.Duration // on a stage that outlives the job's end
}

// DefaultTiming is gitlab-runner's.
var DefaultTiming = Timing{PrepareRetry: 3 * time.Second, StageRetry: 5 * time.Second, GiveUp: 5 * time.Minute}

const (
	prepareTries       = 3
	afterScriptTimeout = 5 * time.Minute
	defaultOutputLimit = 4 << 20
)

// build is one job being run.
type build struct {
	job      *job.Job
	scripts  script.Writer
	executor executor
	log      *output
	timing   Timing
	cancel   *canceler

	mu     sync.Mutex // of result.Calls: a stage that was given up may end late
	result *Result
}

// Run runs a job, without any server, and writes its log. Cancelling ctx
// drops the job as a force-cancel in GitLab does.
func Run(ctx context.Context, config Runner, payload *gitlab.Payload, log io.Writer, timing Timing) Result {
	return runJob(ctx, config, job.New(payload, config.forJob()), log, timing, &canceler{})
}

func runJob(ctx context.Context, config Runner, j *job.Job, log io.Writer, timing Timing, cancel *canceler) Result {
	started := time.Now()
	limit := defaultOutputLimit
	if config.OutputLimit > 0 {
		limit = config.OutputLimit << 10
	}
	b := &build{
		job: j, scripts: script.Writer{Job: j, Command: "gitlab-runner"}, log: newOutput(log, limit),
		timing: timing, cancel: cancel, result: &Result{JobID: j.ID, State: "success"},
	}
	for _, v := range j.Variables() {
		if v.Masked {
			b.log.mask(v.Value)
		}
	}
	b.executor = &custom{config: config, job: j, log: b.log, took: b.stopwatch}
	if config.Executor == "docker" {
		d := config.Docker
		b.executor = dockerExecutor{docker.New(docker.Config{
			Host: d.Host, Image: d.Image, HelperImage: d.HelperImage, Volumes: d.Volumes, NetworkMode: d.NetworkMode,
		}, j, b.log, b.log.println), b.stopwatch}
		b.scripts.Command = docker.Command
	}
	err := b.whole(ctx, config)
	b.report(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result.Took = time.Since(started)
	return *b.result
}

func (b *build) stopwatch(call string) func() {
	started := time.Now()
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.result.Calls = append(b.result.Calls, Call{call, time.Since(started)})
	}
}

// whole is everything from prepare to cleanup.
func (b *build) whole(ctx context.Context, config Runner) error {
	b.log.println("Running with gitlab-runner " + job.Version + " (stand-in)")
	b.log.println(fmt.Sprintf("  on %s %s", config.Name, b.job.Runner.Name()))
	ctx, cancel := context.WithTimeout(ctx, b.job.Timeout())
	defer cancel()
	b.cancel.set(cancel)
	for _, warning := range b.job.Settings().Warnings {
		b.log.warning(warning)
	}
	err := b.log.section("prepare_executor", fmt.Sprintf("Preparing the %q executor", config.Executor), func() error {
		return b.prepare(ctx)
	})
	if err != nil {
		return err
	}
	defer b.executor.cleanup()
	done := make(chan struct{})
	go func() {
		err = b.stages(ctx)
		close(done)
	}()
	select {
	case <-done:
		if ctx.Err() != nil {
			return b.ended(ctx)
		}
		return err
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-time.After(b.timing.GiveUp):
		b.log.warning("Timed out waiting for the build to finish")
	}
	return b.ended(ctx)
}

// ended is the error of a job that was dropped or took too long.
func (b *build) ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err := fmt.Errorf("execution took longer than %v seconds", b.job.Timeout())
		return &buildError{err: err, reason: reasonTimeout}
	}
	return &buildError{err: errCanceled, reason: reasonCanceled}
}

// prepare tries again after system failures, cleaning up after each.
func (b *build) prepare(ctx context.Context) error {
	var err error
	for range prepareTries {
		if err = b.executor.prepare(ctx); err == nil {
			return nil
		}
		b.executor.cleanup()
		var failure *buildError
		switch {
		case errors.As(err, &failure):
			return err
		case ctx.Err() != nil:
			return b.ended(ctx)
		}
		b.log.error(fmt.Sprint("Preparation failed: ", err))
		b.log.info(fmt.Sprintf("Will be retried in %v ...", b.timing.PrepareRetry))
		if wait(ctx, b.timing.PrepareRetry) != nil {
			return b.ended(ctx)
		}
	}
	return err
}

// report says the outcome in the log and in the result.
func (b *build) report(err error) {
	if err == nil {
		b.log.info("Job succeeded")
	} else {
		b.result.State, b.result.Error = "failed", err.Error()
		b.result.FailureReason = reason(err, b.job.Features.FailureReasons)
		b.result.ExitCode = exitCode(err)
		text := "Job failed: "
		if b.result.FailureReason == reasonSystem {
			text = "Job failed (system failure): "
		}
		b.log.error(text + err.Error())
	}
	b.log.flush()
}
