package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/gputest"
)

// asProgram has the test binary be berth-gpu, of the kind that is named.
const asProgram = "BERTH_GPU_TEST"

// reloaded names a file that is there once the kernel's module is loaded.
const reloaded = "BERTH_GPU_TEST_MODULE"

var begin = time.Now()

func TestMain(m *testing.M) {
	kind := os.Getenv(asProgram)
	if kind == "" {
		os.Exit(m.Run())
	}
	err := Serve(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}, func() (gpu.Driver, error) {
		switch kind {
		case "none":
			return nil, fmt.Errorf("no NVIDIA driver: %w", errdefs.ErrNotFound)
		case "crash":
			fmt.Fprintln(os.Stderr, "driver: assertion failed")
			os.Exit(3)
		}
		return fake{gputest.New(2), kind}, nil
	})
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// fake hangs or fails where its kind says so.
type fake struct {
	*gputest.Driver
	kind string
}

func (f fake) Inventory(ctx context.Context) (*gpu.Inventory, error) {
	if f.kind == "unloaded" {
		// As NVML does in a process that was there before: it knows a module that
		// is gone.
		if _, err := os.Stat(os.Getenv(reloaded)); err != nil || f.stale() {
			return nil, fmt.Errorf("NVML says ERROR_UNINITIALIZED: %w", errdefs.ErrUnavailable)
		}
	}
	if f.kind == "broken" {
		return nil, fmt.Errorf("NVML says ERROR_UNKNOWN: %w", errdefs.ErrUnavailable)
	}
	i, err := f.Driver.Inventory(ctx)
	i.Driver = fmt.Sprint(os.Getpid())
	return i, err
}

// stale tells whether the process is older than the module.
func (f fake) stale() bool {
	s, err := os.Stat(os.Getenv(reloaded))
	return err != nil || begin.Before(s.ModTime())
}

func (f fake) Read(ctx context.Context, uuids []string) (map[string]gpu.Reading, error) {
	if f.kind == "hangs" {
		select {}
	}
	return f.Driver.Read(ctx, uuids)
}

func newDriver(t *testing.T, kind string) *Driver {
	t.Setenv(asProgram, kind)
	self, err := os.Executable()
	require.NoError(t, err)
	log := logrus.New()
	log.SetOutput(t.Output())
	d := New(logrus.NewEntry(log), self)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// impatient has calls of a method hang for less long.
func impatient(t *testing.T, method string, d time.Duration) {
	before := patience[method]
	patience[method] = d
	t.Cleanup(func() { patience[method] = before })
}

func TestCalls(t *testing.T) {
	d := newDriver(t, "fine")
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Len(t, i.Devices, 2)
	require.EqualValues(t, 40<<30, i.Devices[1].Memory)
	r, err := d.Read(t.Context(), []string{gputest.UUID(0), gputest.UUID(1)})
	require.NoError(t, err)
	require.Len(t, r, 2)
	events, err := d.Events(t.Context())
	require.NoError(t, err)
	require.Empty(t, events)
	again, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, i.Driver, again.Driver, "one process for all")
}

func TestErrorsKeepTheirClass(t *testing.T) {
	_, err := newDriver(t, "none").Inventory(t.Context())
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.EqualError(t, err, "no NVIDIA driver: not found")
	_, err = newDriver(t, "broken").Inventory(t.Context())
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
}

func TestProgramIsMissing(t *testing.T) {
	d := New(logrus.NewEntry(logrus.New()), filepath.Join(t.TempDir(), "berth-gpu"))
	_, err := d.Inventory(t.Context())
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

// TestCrash: a driver that takes its process down fails calls, and is started
// again.
func TestCrash(t *testing.T) {
	d := newDriver(t, "crash")
	_, err := d.Inventory(t.Context())
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "it ended during a call")

	d = newDriver(t, "fine")
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(i.Driver, &pid)
	require.NoError(t, err)
	waiting := make(chan error, 1)
	go func() { _, err := d.Events(context.Background()); waiting <- err }()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	require.True(t, errdefs.IsUnavailable(<-waiting), "who waited hears of it")
	require.Eventually(t, func() bool {
		again, err := d.Inventory(t.Context())
		return err == nil && again.Driver != i.Driver
	}, 10*time.Second, 5*time.Millisecond)
}

// TestHang: a driver that does not answer is given up, not waited for.
func TestHang(t *testing.T) {
	d := newDriver(t, "hangs")
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	impatient(t, "Read", 50*time.Millisecond)
	_, err = d.Read(t.Context(), []string{gputest.UUID(0)})
	require.True(t, errdefs.IsUnavailable(err))
	require.ErrorContains(t, err, "has not answered Read for 50ms")
	var pid int
	_, err = fmt.Sscan(i.Driver, &pid)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }, 10*time.Second, time.Millisecond)
}

// TestReload: once the driver was loaded again, another version say, a new
// process asks it; the old one never could.
func TestReload(t *testing.T) {
	module := filepath.Join(t.TempDir(), "module")
	t.Setenv(reloaded, module)
	d := newDriver(t, "unloaded")
	_, err := d.Inventory(t.Context())
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "ERROR_UNINITIALIZED")
	require.NoError(t, os.WriteFile(module, nil, 0o600))
	require.Eventually(t, func() bool {
		i, err := d.Inventory(t.Context())
		return err == nil && len(i.Devices) == 2
	}, time.Minute, 10*time.Millisecond)
}

// TestRestartsArePaced: a driver that fails at once is not started all the time.
func TestRestartsArePaced(t *testing.T) {
	d := newDriver(t, "crash")
	for range 5 {
		_, err := d.Inventory(t.Context())
		require.Error(t, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Greater(t, d.pause, 200*time.Millisecond)
	require.LessOrEqual(t, d.pause, longestPause)
	require.True(t, time.Now().Before(d.next))
}

// TestEndsWithBerthd: the process ends when nobody can ask it any more.
func TestEndsWithBerthd(t *testing.T) {
	d := newDriver(t, "fine")
	_, err := d.Inventory(t.Context())
	require.NoError(t, err)
	s := d.current
	require.NoError(t, s.stdin.Close()) // as the kernel does for who is killed
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		require.FailNow(t, "it lives on")
	}
}

// TestCallIsCalledOff: who does not wait any longer does not end the process.
func TestCallIsCalledOff(t *testing.T) {
	d := newDriver(t, "fine")
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	gone := errors.New("caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	_, err = d.Events(ctx)
	require.ErrorIs(t, err, gone)
	again, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, i.Driver, again.Driver)
}
