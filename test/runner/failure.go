package runner

import (
	"context"
	"errors"
	"slices"
)

// The failure reasons that the driver itself knows.
const (
	reasonScript        = "script_failure"
	reasonSystem        = "runner_system_failure"
	reasonTimeout       = "job_execution_timeout"
	reasonCanceled      = "job_canceled"
	reasonUnknown       = "unknown_failure"
	reasonConfiguration = "configuration_error"
)

// buildError is a failure of the job's own, with the reason that GitLab is
// told. Any other error is a system failure.
type buildError struct {
	err      error
	reason   string // script_failure where empty
	exitCode int
}

func (e *buildError) Error() string { return e.err.Error() }
func (e *buildError) Unwrap() error { return e.err }

var (
	errCanceled      = errors.New("canceled")
	errScriptTimeout = errors.New("script timeout")
)

// status is what CI_JOB_STATUS says of an outcome.
func status(err error) string {
	switch {
	case err == nil:
		return "success"
	case errors.Is(err, context.Canceled), errors.Is(err, errCanceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errScriptTimeout):
		return "timedout"
	default:
		return "failed"
	}
}

// reason is the failure reason to report, among those that GitLab knows.
func reason(err error, supported []string) string {
	var failure *buildError
	switch {
	case !errors.As(err, &failure):
		return reasonSystem
	case failure.reason == "":
		return reasonScript
	case slices.Contains([]string{reasonScript, reasonSystem, reasonTimeout}, failure.reason),
		slices.Contains(supported, failure.reason):
		return failure.reason
	default:
		return reasonUnknown
	}
}

func exitCode(err error) int {
	var failure *buildError
	if errors.As(err, &failure) {
		return failure.exitCode
	}
	return 0
}
