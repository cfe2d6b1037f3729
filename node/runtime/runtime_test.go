package runtime

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/config"
)

// managed is the configuration of a managed runtime in a scratch directory,
// with the programs of $BERTH_RUNTIME or `make runtime`.
func managed(t *testing.T) *config.Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containerd needs root")
	}
	programs := os.Getenv("BERTH_RUNTIME")
	if programs == "" {
		programs = "../../bin/runtime"
	}
	programs, err := filepath.Abs(programs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(programs, "containerd")); err != nil {
		t.Fatalf("%v: run `make runtime`, or name the directory in BERTH_RUNTIME", err)
	}
	dir, err := os.MkdirTemp("", "rt") //nolint:usetesting // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c := config.Default()
	c.Root, c.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	c.Runtime.Path = programs
	return c
}

func start(t *testing.T, c *config.Config, gid int) (*Runtime, *bytes.Buffer) {
	t.Helper()
	out := new(bytes.Buffer)
	log := logrus.New()
	log.SetOutput(out) // logrus locks
	r := New(c, gid, logrus.NewEntry(log))
	t.Cleanup(func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r, out
}

func TestManaged(t *testing.T) {
	c := managed(t)
	r, _ := start(t, c, 12345)
	address := r.Containerd().Address
	s, err := os.Stat(address)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(address, &st); err != nil || s.Mode().Perm() != 0o660 || st.Gid != 12345 {
		t.Errorf("socket has mode %v, gid %d, %v", s.Mode(), st.Gid, err)
	}
	if !strings.Contains(r.Version(), "2.") {
		t.Errorf("version %q", r.Version())
	}
	t.Run("plugins", func(t *testing.T) { testPlugins(t, address) })
	t.Run("container", func(t *testing.T) { testContainer(t, address) })
	t.Run("kill -9", func(t *testing.T) {
		pid := r.PID()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); r.PID() == pid; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not come back")
			}
		}
		if err := serving(t.Context(), address); err != nil {
			t.Error(err)
		}
	})
	t.Run("adoption", func(t *testing.T) {
		pid := r.PID()
		r.Leave()
		second, out := start(t, c, 54321)
		if second.PID() != pid {
			t.Errorf("%d was started beside %d", second.PID(), pid)
		}
		if !strings.Contains(out.String(), "takes effect when it is started anew") {
			t.Errorf("nothing is said of the new group: %s", out)
		}
		second.Leave()
	})
	t.Run("stop", func(t *testing.T) {
		pid := r.PID()
		if err := New(c, 0, logrus.NewEntry(logrus.New())).Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d: %v", pid, err)
		}
		leavesNothing(t, filepath.Dir(c.Root))
	})
}

// testPlugins: what is not disabled works, and what is disabled is off.
func testPlugins(t *testing.T, address string) {
	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	answer, err := c.IntrospectionService().Plugins(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range answer.Plugins {
		if p.InitErr != nil && !strings.Contains(p.InitErr.Message, "skip plugin") {
			t.Errorf("%s.%s: %s", p.Type, p.ID, p.InitErr.Message)
		}
		if strings.Contains(p.Type, "cri") || strings.Contains(p.Type, "nri") || p.ID == "cri" {
			t.Errorf("%s.%s is on", p.Type, p.ID)
		}
	}
	if err := hasSnapshotter(t.Context(), c, "zfs"); err == nil || !strings.Contains(err.Error(), `no snapshotter "zfs" but overlayfs`) {
		t.Errorf("got %v", err)
	}
}

// testContainer runs a program of the host's in a container: containerd finds
// the shim and the shim finds runc.
func testContainer(t *testing.T, address string) {
	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), "test")
	var mounts []specs.Mount
	for _, dir := range []string{"/bin", "/lib", "/lib64", "/usr"} {
		if _, err := os.Stat(dir); err == nil {
			mounts = append(mounts, specs.Mount{Source: dir, Destination: dir, Type: "bind", Options: []string{"rbind", "ro"}})
		}
	}
	container, err := c.NewContainer(ctx, "sample", client.WithNewSpec(
		oci.WithRootFSPath(t.TempDir()), oci.WithMounts(mounts), oci.WithProcessArgs("/bin/sh", "-c", "exit 7")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := container.Delete(ctx); err != nil {
			t.Error(err)
		}
	}()
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if code := (<-exited).ExitCode(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}
}

// leavesNothing finds no process that names dir, no mount and no socket
// below it.
func leavesNothing(t *testing.T, dir string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil || len(mounts) != 0 {
		t.Errorf("mounts: %v, %v", mounts, err)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		if line, err := os.ReadFile(file); err == nil && bytes.Contains(line, []byte(dir)) {
			t.Errorf("%s: %q", file, line)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			t.Errorf("socket %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDeadContainerdSaysWhy(t *testing.T) {
	c := managed(t)
	if err := os.MkdirAll(c.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	// containerd cannot make a directory where a file is.
	if err := os.WriteFile(filepath.Join(c.Root, "containerd"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(c, 0, logrus.NewEntry(logrus.New()))
	err := r.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v", err)
	}
	leavesNothing(t, filepath.Dir(c.Root))
}

// One that jobs cannot use is not left running with a configuration that is
// about to be mended.
func TestUselessContainerdIsEnded(t *testing.T) {
	c := managed(t)
	c.Runtime.Snapshotter = "nowhere"
	err := New(c, 0, logrus.NewEntry(logrus.New())).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("got %v", err)
	}
	leavesNothing(t, filepath.Dir(c.Root))
}

func TestNoPrograms(t *testing.T) {
	t.Setenv("PATH", "/nonexistent")
	dir := t.TempDir()
	c := config.Default()
	c.Runtime.Path = dir
	if err := os.WriteFile(filepath.Join(dir, "containerd"), nil, 0o600); err != nil { // not executable
		t.Fatal(err)
	}
	err := New(c, 0, logrus.NewEntry(logrus.New())).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "find containerd: it is neither in "+dir) {
		t.Errorf("got %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	got := environment("/opt/berth", []string{"PATH=/bin", "NOTIFY_SOCKET=/run/x", "HTTPS_PROXY=http://192.0.2.1", "LISTEN_FDS=1"})
	want := "HTTPS_PROXY=http://192.0.2.1 PATH=/opt/berth:/bin"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
