// Package clients builds the docker clients that tests run: real ones, pinned
// in modules of their own below this directory, so that their dependencies
// stay out of the main one.
//
// It is not for operators: nodes need none of them.
package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Docker builds the docker CLI into a directory.
func Docker(ctx context.Context, dir string) (program string, err error) {
	const module = "github.com/docker/cli"
	program = filepath.Join(dir, "docker")
	// It has no go.mod, for which the language would be that of Go 1.16.
	return program, build(ctx, "docker", program, module+"/cmd/docker", "-gcflags="+module+"/...=-lang=go1.26")
}

// Compose builds the plugin of the docker CLI into a directory of plugins.
func Compose(ctx context.Context, dir string) error {
	return build(ctx, "docker", filepath.Join(dir, "docker-compose"), "github.com/docker/compose/v5/cmd")
}

// Testcontainers builds a suite of tests that uses Testcontainers into a
// directory.
func Testcontainers(ctx context.Context, dir string) error {
	return build(ctx, "testcontainers", filepath.Join(dir, "testcontainers"), ".")
}

// Reaper gives the program of the image that Testcontainers reaps with: the
// Ryuk that RYUK names, or what stands in for it, built into a directory.
func Reaper(ctx context.Context, dir string) (program string, err error) {
	if program := os.Getenv("RYUK"); program != "" {
		return program, nil
	}
	program = filepath.Join(dir, "reaper")
	return program, build(ctx, "testcontainers", program, "./reaper")
}

// build builds a package of one of the modules, static.
func build(ctx context.Context, module, program, pkg string, flags ...string) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find modules of clients: %w", err)
	}
	root := strings.TrimSpace(string(out))
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", program}, flags...), pkg)...)
	cmd.Dir = filepath.Join(root, "test", "clients", module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", module, err, out)
	}
	return nil
}
