package executor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"
)

// BuildFailure is the job's own failure: its script, its configuration, or
// something that it asked for and may not have. gitlab-runner does not retry
// it. Every other error is a system failure, which the runner retries.
type BuildFailure struct {
	Err error
	// ExitCode of the job's script; 0 when no script ran.
	ExitCode int
}

func (f *BuildFailure) Error() string { return f.Err.Error() }

// Unwrap gives the cause.
func (f *BuildFailure) Unwrap() error { return f.Err }

// Failf makes a BuildFailure that no script's exit code belongs to.
func Failf(format string, args ...any) error {
	return &BuildFailure{Err: fmt.Errorf(format, args...)}
}

// Exit reports err as gitlab-runner wants it: a sentence on w, the script's
// exit code in BUILD_EXIT_CODE_FILE, and the exit status it returns.
func (c *Call) Exit(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var build *BuildFailure
	if !errors.As(err, &build) {
		fmt.Fprintf(w, "ERROR: berth: %v\n", err)
		return c.systemFailure
	}
	if text := build.Error(); text != "" {
		fmt.Fprintf(w, "ERROR: %s\n", text)
	}
	if build.ExitCode != 0 && c.exitCodeFile != "" {
		if err := os.WriteFile(c.exitCodeFile, []byte(strconv.Itoa(build.ExitCode)+"\n"), 0o600); err != nil {
			fmt.Fprintf(w, "WARNING: berth: report exit code %d: %v\n", build.ExitCode, err)
		}
	}
	return c.buildFailure
}

// failureCodes are those that gitlab-runner set, or 1 and 2 without one.
func failureCodes(env map[string]string) (build, system int) {
	code := func(name string, fallback int) int {
		if n, err := strconv.Atoi(env[name]); err == nil && n > 0 && n < 256 {
			return n
		}
		return fallback
	}
	return code(api.BuildFailureExitCodeVariable, 1), code(api.SystemFailureExitCodeVariable, 2)
}
