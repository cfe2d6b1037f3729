// Package enginetest gives tests an engine on a containerd of their own, and lets them kill and restart it.
//
// It is for tests alone, and runs no jobs.
package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/test/containerdtest"
)

var (
	address string // of containerd
	dir     string
	missing string // why there is none
	count   atomic.Int32
)

// Main runs the tests of a package beside a containerd, and looks for mounts that they leave.
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if missing = containerdtest.Missing(); missing != "" {
		return m.Run(), nil
	}
	if dir, err = os.MkdirTemp("", "berth-buildkit-test-"); err != nil {
		return 0, err
	}
	var stop func()
	if address, stop, err = containerdtest.Start(dir); err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	defer stop()
	code = m.Run()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return code, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/clones/") && strings.Contains(line, dir) {
			err = errors.Join(err, fmt.Errorf("tests left a mount: %s", strings.TrimSpace(line)))
		}
	}
	return code, err
}

// Engine is an engine that a test may restart.
type Engine struct {
	*buildkit.Engine
	tb     testing.TB
	Config buildkit.Config
}

// New opens an engine with a root and a containerd namespace of its own.
func New(tb testing.TB) *Engine {
	tb.Helper()
	if missing != "" {
		tb.Skip(missing)
	}
	root := filepath.Join(dir, fmt.Sprintf("engine-%d", count.Add(1)))
	e := &Engine{tb: tb, Config: buildkit.Config{Root: root, Address: address, Namespace: filepath.Base(root)}}
	e.Open(buildkit.Held{})
	tb.Cleanup(func() {
		if e.Engine == nil {
			return
		}
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	})
	return e
}

// Open opens the engine and takes back what jobs hold.
func (e *Engine) Open(held buildkit.Held) buildkit.Taken {
	e.tb.Helper()
	e.Start()
	taken, err := e.Retake(e.tb.Context(), e.journaled(held))
	if err != nil {
		e.tb.Fatal(err)
	}
	return taken
}

// journaled is what a journal gives back of what jobs hold.
func (e *Engine) journaled(held buildkit.Held) (again buildkit.Held) {
	e.tb.Helper()
	text, err := json.Marshal(held)
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil {
		e.tb.Fatal(err)
	}
	return again
}

// RemoveSnapshot removes a record's snapshot from containerd while the engine is closed, with the lease that holds it.
func (e *Engine) RemoveSnapshot(id string) {
	e.tb.Helper()
	client, err := containerd.New(e.Config.Address, containerd.WithDefaultNamespace(e.Config.Namespace))
	if err != nil {
		e.tb.Fatal(err)
	}
	defer client.Close()
	if err := client.LeasesService().Delete(e.tb.Context(), leases.Lease{ID: id}, leases.SynchronousDelete); err != nil {
		e.tb.Fatal(err)
	}
	if _, err := client.SnapshotService(buildkit.Snapshotter).Stat(e.tb.Context(), id); !errdefs.IsNotFound(err) {
		e.tb.Fatalf("snapshot %s is still there: %v", id, err)
	}
}

// Restart closes the engine, which gives nothing back, and opens it again.
func (e *Engine) Restart(held buildkit.Held) buildkit.Taken {
	e.tb.Helper()
	e.close()
	return e.Open(held)
}

// Reopen is Restart for such a test as Start is for.
func (e *Engine) Reopen() {
	e.tb.Helper()
	e.close()
	e.Start()
}

// Start opens the engine for a test that takes back by itself what jobs hold.
func (e *Engine) Start() {
	e.tb.Helper()
	var err error
	if e.Engine, err = buildkit.Open(e.tb.Context(), e.Config); err != nil {
		e.tb.Fatal(err)
	}
}

func (e *Engine) close() {
	e.tb.Helper()
	if err := e.Close(); err != nil {
		e.tb.Fatal(err)
	}
	e.Engine = nil
}
