// Package containerdtest runs a containerd of its own for tests, with a scratch root and socket.
//
// It is not a way to run containerd in production: it supervises nothing and deletes all it made.
package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
)

// Env names the directory of the runtime's programs; without it, bin/runtime of this module is used.
const Env = "BERTH_RUNTIME"

// Missing says why containerd cannot be started here; empty means that it can.
func Missing() string {
	if os.Geteuid() != 0 {
		return "containerd needs root"
	}
	if _, err := Programs(); err != nil {
		return err.Error()
	}
	return ""
}

// Programs finds the directory of the runtime's programs.
func Programs() (string, error) {
	dir := os.Getenv(Env)
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "bin", "runtime")
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("no %s in %s: run `make runtime` or set %s", name, dir, Env)
		}
	}
	return dir, nil
}

// moduleRoot is the nearest directory upwards with a go.mod; tests run in the directory of their package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the working directory: set %s", Env)
		}
		dir = filepath.Dir(dir)
	}
}

// Start runs containerd with everything it writes below dir, and returns the address of its socket. stop ends it
// with all its containers, unmounts what is left below dir, and removes dir. More is put at the end of its configuration.
func Start(dir string, more ...string) (address string, stop func(), err error) {
	bin, err := Programs()
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", nil, err
	}
	address = filepath.Join(dir, "state", "containerd.sock")
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, configuration+strings.Join(more, "\n"), dir, address), 0o600); err != nil {
		return "", nil, err
	}
	logfile, err := os.Create(filepath.Join(dir, "containerd.log"))
	if err != nil {
		return "", nil, err
	}
	defer logfile.Close()

	cmd := exec.Command(filepath.Join(bin, "containerd"), "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = logfile, logfile
	// A test binary that is killed takes containerd along. A Ctrl-C is for the test binary alone, whose stop ends
	// containers first: their shims would outlive containerd.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start containerd: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	stop = sync.OnceFunc(func() {
		removeContainers(address)
		terminate(cmd.Process, exited)
		_ = mount.UnmountRecursive(dir, unix.MNT_DETACH)
		_ = os.RemoveAll(dir)
	})
	if err := waitReady(address, exited); err != nil {
		text, _ := os.ReadFile(logfile.Name())
		stop()
		return "", nil, fmt.Errorf("%w\n%s", err, text)
	}
	return address, stop, nil
}

const configuration = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri",
]

[grpc]
  address = "%[2]s"

[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
`

func waitReady(address string, exited chan error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("containerd ended: %w", err)
		case <-ctx.Done():
			return errors.New("containerd does not answer")
		case <-time.After(20 * time.Millisecond):
		}
		c, err := client.New(address, client.WithTimeout(time.Second))
		if err != nil {
			continue
		}
		serving, err := c.IsServing(ctx)
		_ = c.Close()
		if err == nil && serving {
			return nil
		}
	}
}

// removeContainers ends what tests left running; a shim would outlive its containerd.
func removeContainers(address string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.New(address, client.WithTimeout(time.Second))
	if err != nil {
		return
	}
	defer c.Close()
	spaces, _ := c.NamespaceService().List(ctx)
	for _, space := range spaces {
		ctx := namespaces.WithNamespace(ctx, space)
		containers, _ := c.Containers(ctx)
		for _, container := range containers {
			if task, err := container.Task(ctx, nil); err == nil {
				_, _ = task.Delete(ctx, client.WithProcessKill)
			}
			_ = container.Delete(ctx, client.WithSnapshotCleanup)
		}
	}
}

// terminate ends a process, by force if it does not go in time.
func terminate(p *os.Process, exited <-chan error) {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-exited: //nolint:errcheck // how it ended does not matter
	case <-time.After(10 * time.Second):
		_ = p.Kill()
		<-exited //nolint:errcheck // it was killed
	}
}
