package runner

import (
	"context"
	"errors"
	"fmt"
	"os"

	"gitlab.com/berth-ci/berth/test/runner/docker"
	"gitlab.com/berth-ci/berth/test/runner/script"
)

// dockerExecutor makes the docker executor's failures those of the driver.
type dockerExecutor struct {
	inner *docker.Executor
	took  func(call string) func()
}

func (d dockerExecutor) prepare(ctx context.Context) error {
	defer d.took("prepare")()
	return d.inner.Prepare(ctx)
}

func (d dockerExecutor) run(ctx context.Context, stage, text string) error {
	defer d.took("run " + stage)()
	err := d.inner.Run(ctx, script.Predefined(stage), text)
	var exit *docker.ExitError
	if errors.As(err, &exit) {
		return &buildError{err: err, exitCode: exit.Code}
	}
	return err
}

func (d dockerExecutor) cleanup() {
	defer d.took("cleanup")()
	if err := d.inner.Cleanup(); err != nil {
		fmt.Fprintln(os.Stderr, "Cleanup failed:", err)
	}
}
