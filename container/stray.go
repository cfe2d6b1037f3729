package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// A container that is removed while its task is being made, or a task whose
// making is cut off, may leave a shim that containerd does not know of.

const (
	// shimGrace is how long the shim of a deleted task may take to end by itself.
	shimGrace = time.Second
	// shimDeleteTimeout bounds the clean-up after a shim.
	shimDeleteTimeout = 30 * time.Second
)

// shim is a process of containerd's that looks after a container.
type shim struct {
	pid       int
	container string
	args      []string
	env       []string
	program   string
	bundle    string // directory
}

// shims lists those of this containerd and namespace, from their arguments:
// containerd-shim-runc-v2 -namespace NAMESPACE -id ID -address ADDRESS.
func shims(client *containerd.Client) ([]shim, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	address, err := addressOf(client)
	if err != nil {
		return nil, err
	}
	var found []shim
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // it may have ended
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") ||
			argument(args, "-namespace") != client.DefaultNamespace() || argument(args, "-address") != address {
			continue
		}
		found = append(found, shim{pid: pid, container: argument(args, "-id"), args: args})
	}
	return found, nil
}

// addressOf is containerd's socket.
func addressOf(client *containerd.Client) (string, error) {
	conn, ok := client.Conn().(interface{ Target() string })
	if !ok {
		return "", fmt.Errorf("find containerd's socket: the connection to it is a %T", client.Conn())
	}
	return strings.TrimPrefix(conn.Target(), "unix://"), nil
}

func argument(args []string, name string) string {
	for i := 1; i+1 < len(args); i++ {
		if args[i] == name {
			return args[i+1]
		}
	}
	return ""
}

// containerPattern matches the names of jobs' containers.
var containerPattern = regexp.MustCompile(`^(j[0-9]+-[0-9a-f]+)-(` + RoleBuild + `|` + RoleHelper + `|` + RoleService + `-[0-9]+)$`)

// jobOf is the key of the job that a container belongs to, if any.
func jobOf(container string) string {
	if m := containerPattern.FindStringSubmatch(container); m != nil {
		return m[1]
	}
	return ""
}

// removeShims ends the shims that are left of a job, with their containers.
func removeShims(ctx context.Context, client *containerd.Client, job string) error {
	all, err := shims(client)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		if jobOf(s.container) == job {
			errs = append(errs, s.remove(ctx))
		}
	}
	return errors.Join(errs...)
}

// remove ends the shim and what it looks after, unless it is just ending.
func (s shim) remove(ctx context.Context) error {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open shim of %s: %w", s.container, err)
	}
	defer unix.Close(fd)
	if ended(fd, shimGrace) || !s.read() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill shim of %s: %w", s.container, err)
	}
	if !ended(fd, killTimeout) {
		return fmt.Errorf("kill shim of %s: it still runs %v after SIGKILL", s.container, killTimeout)
	}
	return s.removeBundle(ctx)
}

// ended waits for a process to end.
func ended(pidfd int, most time.Duration) bool {
	deadline := time.Now().Add(most)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err == nil && n > 0 {
			return true
		}
		if left == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// read takes down what is needed to clean up after the shim, and says whether
// the process is still the shim.
func (s *shim) read() bool {
	dir := filepath.Join("/proc", strconv.Itoa(s.pid))
	var errs [4]error
	var line, env []byte
	line, errs[0] = os.ReadFile(filepath.Join(dir, "cmdline"))
	env, errs[1] = os.ReadFile(filepath.Join(dir, "environ"))
	s.program, errs[2] = os.Readlink(filepath.Join(dir, "exe"))
	s.bundle, errs[3] = os.Readlink(filepath.Join(dir, "cwd"))
	s.env = strings.Split(string(bytes.TrimRight(env, "\x00")), "\x00")
	return errors.Join(errs[:]...) == nil && strings.TrimRight(string(line), "\x00") == strings.Join(s.args, "\x00")
}

// removeBundle does what containerd does when a shim has died: the shim's
// program ends the container and unmounts its root.
func (s shim) removeBundle(ctx context.Context) error {
	if filepath.Base(s.bundle) != s.container {
		return nil // containerd has removed it
	}
	if _, err := os.Stat(s.bundle); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, shimDeleteTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, append(s.args[1:len(s.args):len(s.args)], "-bundle", s.bundle, "delete")...)
	cmd.Dir, cmd.Env = s.bundle, s.env
	out, err := cmd.CombinedOutput()
	work, linkErr := os.Readlink(filepath.Join(s.bundle, "work"))
	if errors.Is(linkErr, os.ErrNotExist) {
		return nil // containerd was faster
	}
	if err != nil {
		return fmt.Errorf("clean up after shim of %s: %w: %s", s.container, err, out)
	}
	return errors.Join(linkErr, os.RemoveAll(work), os.RemoveAll(s.bundle))
}
