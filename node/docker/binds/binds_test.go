package binds_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/docker/binds"
)

const (
	waiting = 30 * time.Second
	tick    = 5 * time.Millisecond
)

// container is a process with mounts and a root of its own.
type container struct {
	pid    int
	root   string
	cgroup string
}

// start runs a process in a root with some files, as a build container's is.
func start(t *testing.T) container {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces need root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("busybox is not installed")
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "data/deep", "proc", "tmp", "ro"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	text, err := os.ReadFile("/bin/busybox")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin", "busybox"), text, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "data", "file"), []byte("mine"), 0o644))
	for name, to := range map[string]string{"link": "/data", "up": "../../../../../../data", "magic": "/proc/1/root", "loop": "loop"} {
		require.NoError(t, os.Symlink(to, filepath.Join(root, name)))
	}
	ready, tell, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	script := fmt.Sprintf(`mount -t proc proc %[1]s/proc && mount -t tmpfs tmpfs %[1]s/tmp && mount --bind %[1]s %[1]s/ro && mount -o remount,bind,ro %[1]s/ro && echo ready >&3 && exec 3>&- && exec chroot %[1]s /bin/busybox sleep 1000`, root)
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	tell.Close()
	b := make([]byte, 6)
	_, err = ready.Read(b)
	require.NoError(t, err)
	// Until it has changed its root, it is no container.
	require.Eventually(t, func() bool {
		at, err := os.Readlink(fmt.Sprintf("/proc/%d/root", cmd.Process.Pid))
		return err == nil && at == root
	}, waiting, tick)
	return container{pid: cmd.Process.Pid, root: root, cgroup: cgroupOf(t)}
}

// cgroupOf is the parent of a cgroup that this process is in.
func cgroupOf(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	parts := strings.SplitN(strings.SplitN(string(text), "\n", 2)[0], ":", 3)
	return strings.TrimSuffix(filepath.Dir(parts[2]), "/")
}

func stage(t *testing.T) *binds.Stage {
	t.Helper()
	s, err := binds.Open(filepath.Join(t.TempDir(), "binds"))
	require.NoError(t, err)
	t.Cleanup(func() {
		jobs, err := s.Jobs()
		require.NoError(t, err)
		for _, job := range jobs {
			require.NoError(t, s.Release(job))
		}
		require.NoError(t, s.Close())
	})
	return s
}

func TestPin(t *testing.T) {
	c := start(t)
	s := stage(t)
	pin := func(path string, create bool) (binds.Bind, error) {
		return s.Pin(t.Context(), binds.Request{Job: "j1", PID: c.pid, Cgroup: c.cgroup, Path: path, Create: create})
	}
	for _, path := range []string{"/data", "/link", "/up", "/data/../data", "/data/deep/..", "/../../data"} {
		b, err := pin(path, false)
		require.NoError(t, err, path)
		require.False(t, b.ReadOnly)
		text, err := os.ReadFile(filepath.Join(b.Path, "file"))
		require.NoError(t, err, path)
		require.Equal(t, "mine", string(text))
	}
	b, err := pin("/data/file", false)
	require.NoError(t, err)
	text, err := os.ReadFile(b.Path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(text))
	b, err = pin("/ro/data", false)
	require.NoError(t, err)
	require.True(t, b.ReadOnly)
	b, err = pin("/made/deep/dir", true)
	require.NoError(t, err)
	require.DirExists(t, filepath.Join(c.root, "made", "deep", "dir"))

	for path, class := range map[string]func(error) bool{
		"relative": errdefs.IsInvalidArgument, "": errdefs.IsInvalidArgument, "/a\x00b": errdefs.IsInvalidArgument,
		"/none": errdefs.IsNotFound, "/data/file/x": errdefs.IsNotFound,
		"/loop": errdefs.IsInvalidArgument, "/magic": func(error) bool { return true }, // as the kernel has it
		"/proc": errdefs.IsPermissionDenied, "/proc/self/status": errdefs.IsPermissionDenied,
	} {
		_, err := pin(path, false)
		require.Error(t, err, path)
		require.True(t, class(err), "%s: %v", path, err)
	}
	// What changes later on changes nothing of what is bound.
	b, err = pin("/link", false)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(c.root, "link")))
	require.NoError(t, os.Symlink("/etc", filepath.Join(c.root, "link")))
	require.FileExists(t, filepath.Join(b.Path, "file"))

	jobs, err := s.Jobs()
	require.NoError(t, err)
	require.Equal(t, []string{"j1"}, jobs)
	require.NoError(t, s.Unpin(b.Path))
	require.NoError(t, s.Unpin(b.Path), "a second time")
	require.NoFileExists(t, b.Path)
	require.True(t, errdefs.IsInvalidArgument(s.Unpin("/etc")))
	require.NoError(t, s.Release("j1"))
	require.NoError(t, s.Release("j1"), "a second time")
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Dir(filepath.Dir(b.Path))))
	require.NoError(t, err)
	require.Len(t, mounts, 1, "the stage alone")
	require.FileExists(t, filepath.Join(c.root, "data", "file"))
}

// TestOthers refuses processes that are not of the job.
func TestOthers(t *testing.T) {
	c := start(t)
	s := stage(t)
	_, err := s.Pin(t.Context(), binds.Request{Job: "j1", PID: c.pid, Cgroup: "/berth/j1-00000000", Path: "/data"})
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.NoError(t, unix.Kill(c.pid, unix.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := s.Pin(t.Context(), binds.Request{Job: "j1", PID: c.pid, Cgroup: c.cgroup, Path: "/data"})
		return errdefs.IsFailedPrecondition(err)
	}, waiting, tick)
}

// TestReopen finds the binds of an earlier berthd.
func TestReopen(t *testing.T) {
	c := start(t)
	dir := filepath.Join(t.TempDir(), "binds")
	s, err := binds.Open(dir)
	require.NoError(t, err)
	b, err := s.Pin(t.Context(), binds.Request{Job: "j1", PID: c.pid, Cgroup: c.cgroup, Path: "/data"})
	require.NoError(t, err)
	require.NoError(t, s.Close()) // in use
	s, err = binds.Open(dir)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(b.Path, "file"))
	require.NoError(t, s.Release("j1"))
	require.NoError(t, s.Close())
	require.NoDirExists(t, dir)
}
