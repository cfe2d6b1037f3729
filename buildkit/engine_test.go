package buildkit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// childEnv makes the test binary a berthd that waits to be killed.
const childEnv = "BERTH_TEST_ENGINE"

func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		if err := child(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	enginetest.Main(m)
}

func TestOneEngine(t *testing.T) {
	e := enginetest.New(t)
	if _, err := buildkit.Open(t.Context(), e.Config); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second engine on one root: %v", err)
	}
	e.Restart(buildkit.Held{})
}

// Without the guard, each of these takes what jobs hold.
func TestGuard(t *testing.T) {
	e := enginetest.New(t)
	m, err := e.Mounts().Acquire(t.Context(), cachemount.Request{Key: "p/id", Job: "job", Sharing: spec.Shared})
	if err != nil {
		t.Fatal(err)
	}
	id := m.Record().ID
	check := func(what string) {
		t.Helper()
		found, err := mounts.SearchCacheDir(t.Context(), e.Worker().CacheManager(), "p/id", false)
		if err != nil || len(found) != 1 || found[0].ID() != id {
			t.Errorf("%s: %d records, %v", what, len(found), err)
		}
	}
	if err := e.Worker().PruneCacheMounts(t.Context(), map[string]bool{"p/id": false}); err != nil {
		t.Error(err)
	}
	check("after a build without cache")
	if err := m.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := e.Worker().Prune(t.Context(), nil, client.PruneInfo{All: true}); err != nil {
		t.Error(err)
	}
	check("after a prune")
	if usage, err := e.Worker().DiskUsage(t.Context(), client.DiskUsageInfo{}); err != nil || len(usage) != 0 {
		t.Errorf("a client sees %d records, %v", len(usage), err)
	}
}

// A berthd is killed with jobs running; the next one takes back what they have.
func TestKilled(t *testing.T) {
	e := enginetest.New(t)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e.Engine = nil
	config, err := json.Marshal(e.Config)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var held buildkit.Held
	err = json.NewDecoder(out).Decode(&held)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}

	taken := e.Open(held)
	if len(taken.Mounts) != 1 || len(taken.Clones) != 1 || len(taken.Lost.Mounts)+len(taken.Lost.Clones) != 0 {
		t.Fatalf("taken back: %+v", taken)
	}
	_, err = e.Mounts().Acquire(t.Context(), cachemount.Request{Key: "p/locked", Job: "other", Sharing: spec.Locked, Limit: 300 * time.Millisecond})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "in use by job") {
		t.Errorf("lock of a job that lives: %v", err)
	}
	clone := taken.Clones[0]
	text, err := os.ReadFile(filepath.Join(clone.Path(), "f"))
	if err != nil || string(text) != "written" {
		t.Errorf("clone of a job that lives has %q, %v", text, err)
	}
	if _, _, err := clone.Publish(t.Context()); err != nil {
		t.Error(err)
	}
	if err := taken.Mounts[0].Release(t.Context()); err != nil {
		t.Error(err)
	}
	if info, ok := e.Generations().Newest("p/snapshot"); !ok || info.Job != "job" {
		t.Errorf("newest generation %+v", info)
	}
}

// child holds caches, says what by its journal, and waits for the end.
func child(text string) error {
	var config buildkit.Config
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := buildkit.Open(ctx, config)
	if err != nil {
		return err
	}
	if round := os.Getenv(stressChildEnv); round != "" {
		return stressChild(ctx, e, round)
	}
	if _, err := e.Retake(ctx, buildkit.Held{}); err != nil {
		return err
	}
	m, err := e.Mounts().Acquire(ctx, cachemount.Request{Key: "p/locked", Job: "job", Sharing: spec.Locked})
	if err != nil {
		return err
	}
	c, err := e.Generations().Clone(ctx, "p/snapshot", "job")
	if err != nil {
		return err
	}
	if err := c.Mount(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.Path(), "f"), []byte("written"), 0o600); err != nil {
		return err
	}
	// A job that dies with berthd.
	dead, err := e.Generations().Clone(ctx, "p/snapshot", "dead")
	if err != nil {
		return err
	}
	if err := dead.Mount(); err != nil {
		return err
	}
	held := buildkit.Held{Mounts: []cachemount.Record{m.Record()}, Clones: []generation.Record{c.Record()}}
	if err := json.NewEncoder(os.Stdout).Encode(held); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// An engine whose mounts containerd cannot see says so, instead of giving jobs empty directories.
func TestHidden(t *testing.T) {
	e := enginetest.New(t)
	config := e.Config
	config.Root = t.TempDir()
	config.Namespace = "hidden"
	result := make(chan error)
	go func() {
		// The thread is not given back: its mount namespace is its own.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			result <- err
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			result <- err
			return
		}
		result <- buildkit.CheckVisible(t.Context(), config.Address, config.Root)
	}()
	if err := <-result; !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "containerd does not see mounts") {
		t.Errorf("error %v", err)
	}
	if err := buildkit.CheckVisible(t.Context(), config.Address, config.Root); err != nil {
		t.Error(err)
	}
	f, err := os.Open(config.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, err := f.ReadDir(-1); err != nil && err != io.EOF || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
