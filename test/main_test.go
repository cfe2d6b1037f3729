// Package test runs CI jobs end to end: a stand-in GitLab hands them to a
// runner, the runner to berth, and berthd gives them their berths. The runner
// is the gitlab-runner that GITLAB_RUNNER names or that is on the PATH, else a
// stand-in that makes the same calls.
package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// Shared by all tests; nil where missing says why.
var (
	missing  string
	programs testnode.Programs
	registry *images.Registry
	node     *testnode.Node
)

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (status int, err error) {
	if missing = testnode.Missing(); missing != "" {
		return m.Run(), nil
	}
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "berth-test")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if programs, err = testnode.Build(ctx, dir); err != nil {
		return 0, err
	}
	if registry, err = images.Serve(ctx); err != nil {
		return 0, err
	}
	defer registry.Close()
	if node, err = testnode.Start(ctx, testnode.Config{Programs: programs, Images: registry, Change: profiles}); err != nil {
		return 0, err
	}
	defer func() {
		if stopErr := node.Stop(ctx); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
	}()
	defer stopServer()
	status = m.Run()
	// Jobs of all kinds have been there, and left nothing.
	return status, node.AwaitClean(ctx)
}

func needNode(t *testing.T) {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
}
