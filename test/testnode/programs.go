package testnode

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"gitlab.com/berth-ci/berth/test/containerdtest"
)

// Programs are the files of the programs that a node is made of.
type Programs struct {
	Berth, Berthd string
	// Runner is the stand-in for gitlab-runner.
	Runner string
}

// Build builds the programs from this module into a directory.
func Build(ctx context.Context, dir string) (Programs, error) {
	const module = "gitlab.com/berth-ci/berth/"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir+"/", module+"cmd/berth", module+"cmd/berthd", module+"test/cmd/runner")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as in releases
	if out, err := cmd.CombinedOutput(); err != nil {
		return Programs{}, fmt.Errorf("build programs: %w: %s", err, out)
	}
	return Programs{
		Berth:  filepath.Join(dir, "berth"),
		Berthd: filepath.Join(dir, "berthd"),
		Runner: filepath.Join(dir, "runner"),
	}, nil
}

// runtimeDir is where containerd and its like are.
func runtimeDir() (string, error) { return containerdtest.Programs() }
