package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab.com/berth-ci/berth/test/runner/script"
)

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
