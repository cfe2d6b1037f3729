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
	done := make(chan error, 1)
	go func() { done <- b.stages(ctx) }()
	select {
	case err = <-done:
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

// stages runs the scripts, in the order and by the rules of gitlab-runner.
func (b *build) stages(ctx context.Context) error {
	if err := b.stage(ctx, script.Prepare); err != nil {
		return fmt.Errorf("prepare environment: %w. Check https://docs.gitlab.com/runner/shells/#shell-profile-loading for more information", err)
	}
	settings := b.job.Settings()
	err := b.attempt(ctx, script.GetSources, settings.SourcesAttempts)
	if err == nil {
		err = b.attempt(ctx, script.RestoreCache, settings.CacheAttempts)
	}
	if err == nil {
		err = b.attempt(ctx, script.Download, settings.DownloadAttempts)
	}
	if err == nil {
		err = b.userStages(ctx)
	}
	archive, upload := script.ArchiveOnSuccess, script.UploadOnSuccess
	if err != nil {
		archive, upload = script.ArchiveOnFailure, script.UploadOnFailure
	}
	for _, stage := range []string{archive, upload} {
		if errStage := b.stage(ctx, stage); err == nil {
			err = errStage
		}
	}
	if errCleanup := b.stage(ctx, script.Cleanup); errCleanup != nil {
		b.log.warning(fmt.Sprint("Error while executing file based variables removal script: ", errCleanup))
	}
	return err
}

// attempt retries a stage; before the second try of get_sources the working
// tree is emptied.
func (b *build) attempt(ctx context.Context, stage string, attempts int) error {
	for n := 0; ; n++ {
		var err error
		if stage == script.GetSources && n == 1 {
			err = b.stage(ctx, script.ClearWorktree)
		}
		if err == nil {
			err = b.stage(ctx, stage)
		}
		if err == nil || n+1 >= attempts {
			return err
		}
		b.log.warning("Retrying...")
		if errWait := wait(ctx, b.timing.StageRetry); errWait != nil {
			return errWait
		}
	}
}

// userStages runs the steps and after_script. A cancel from here on stops only
// the steps.
func (b *build) userStages(ctx context.Context) error {
	scriptCtx, cancel := b.limit(ctx, "RUNNER_SCRIPT_TIMEOUT", 0)
	defer cancel()
	b.cancel.set(cancel)
	var err error
	for _, step := range b.job.Steps {
		if step.Name == "after_script" {
			continue
		}
		if err = b.stage(scriptCtx, script.Step(step.Name)); err != nil {
			break
		}
	}
	switch {
	case ctx.Err() == nil && errors.Is(scriptCtx.Err(), context.Canceled):
		err = &buildError{err: errCanceled, reason: reasonCanceled}
		b.log.warning("script canceled externally (UI, API)")
	case ctx.Err() == nil && errors.Is(scriptCtx.Err(), context.DeadlineExceeded):
		err = &buildError{err: fmt.Errorf("%w: %w", errScriptTimeout, scriptCtx.Err()), reason: reasonTimeout}
	}
	afterCtx, cancelAfter := b.limit(ctx, "RUNNER_AFTER_SCRIPT_TIMEOUT", afterScriptTimeout)
	defer cancelAfter()
	b.job.SetStatus(status(err))
	if errAfter := b.stage(afterCtx, script.After); errAfter != nil && ctx.Err() == nil {
		switch {
		case b.job.Value("AFTER_SCRIPT_IGNORE_ERRORS") != "false":
			b.log.warning(fmt.Sprint("after_script failed, but job will continue unaffected: ", errAfter))
		case err == nil:
			err = errAfter
		}
	}
	return err
}

// limit bounds a context by a variable, or by otherwise unless that is 0.
func (b *build) limit(ctx context.Context, variable string, otherwise time.Duration) (context.Context, context.CancelFunc) {
	timeout := otherwise
	if text := b.job.Value(variable); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			b.log.warning(fmt.Sprintf("Ignoring malformed %s timeout: %v", variable, text))
		} else if d > 0 {
			timeout = d
		}
	}
	if timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}

func (b *build) stage(ctx context.Context, stage string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text, err := b.scripts.Script(stage)
	if err != nil || text == "" {
		return err
	}
	err = b.log.section(stage, describe(stage), func() error { return b.executor.run(ctx, stage, text) })
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		b.log.warning(stage + " could not run to completion because the timeout was exceeded. For more control over job and script timeouts see: " +
			"https://docs.gitlab.com/ci/runners/configure_runners/#set-script-and-after_script-timeouts")
	}
	return err
}

func describe(stage string) string {
	titles := map[string]string{
		script.Prepare:          "Preparing environment",
		script.GetSources:       "Getting source from Git repository",
		script.ClearWorktree:    "Deleting all tracked and untracked files due to source fetch failure",
		script.RestoreCache:     "Restoring cache",
		script.Download:         "Downloading artifacts",
		script.After:            "Running after_script",
		script.ArchiveOnSuccess: "Saving cache for successful job",
		script.ArchiveOnFailure: "Saving cache for failed job",
		script.UploadOnSuccess:  "Uploading artifacts for successful job",
		script.UploadOnFailure:  "Uploading artifacts for failed job",
		script.Cleanup:          "Cleaning up project directory and file based variables",
	}
	if title, ok := titles[stage]; ok {
		return title
	}
	return fmt.Sprintf("Executing %q stage of the job script", stage)
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

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
