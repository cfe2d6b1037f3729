package relay

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// The test binary is a relay, and a berthd that hands things over, in
// processes of their own.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "relay":
			os.Exit(process(func(ctx context.Context) error {
				return Serve(ctx, Options{Socket: os.Args[2], Version: os.Args[3], Log: logrus.NewEntry(logrus.New())})
			}))
		case "berthd":
			os.Exit(process(func(ctx context.Context) error { return berthd(ctx, os.Args[2], os.Args[3]) }))
		}
	}
	os.Exit(m.Run())
}

func process(run func(context.Context) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// start runs the test binary as something, and ends it with the test.
func start(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// relay starts one that serves.
func relay(t testing.TB, socket, version string) (*exec.Cmd, *Client) {
	t.Helper()
	cmd, c := start(t, "relay", socket, version), NewClient(socket)
	await(t, func() bool {
		v, err := c.Version(t.Context())
		return err == nil && v.PID == cmd.Process.Pid
	})
	return cmd, c
}

// socketPath is short enough for a socket's.
func socketPath(t testing.TB) string {
	dir, err := os.MkdirTemp("", "relay") //nolint:usetesting // sockets need a short path
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "s")
}

func await(t testing.TB, met func() bool) {
	t.Helper()
	require.Eventually(t, met, 30*time.Second, 5*time.Millisecond)
}
