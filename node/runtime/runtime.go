// Package runtime provides the containerd that jobs run in: one of berthd's
// own, which it keeps running, or the host's. It makes no containers.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
	"gitlab.com/berth-ci/berth/node/supervise"
)

// Runtime is the containerd of a node.
type Runtime struct {
	config     *config.Config
	gid        int
	log        *logrus.Entry
	supervisor *supervise.Supervisor // nil when attached to the host's
	version    string
}

// New makes a Runtime as configured. Members of the group gid may use the
// socket of a managed containerd.
func New(c *config.Config, gid int, log *logrus.Entry) *Runtime {
	return &Runtime{config: c, gid: gid, log: log}
}

// Start returns when containerd serves, after adopting or starting it where
// it is berthd's own.
func (r *Runtime) Start(ctx context.Context) (err error) {
	if r.config.Runtime.Managed {
		if err := r.run(ctx); err != nil {
			return err
		}
		defer func() {
			switch {
			case err == nil:
			case r.supervisor.Adopted():
				r.Leave()
			default:
				err = errors.Join(err, r.Stop(context.WithoutCancel(ctx)))
			}
		}()
	}
	c := r.Containerd()
	if r.version, err = check(ctx, c); err != nil {
		return fmt.Errorf("use containerd at %s: %w", c.Address, err)
	}
	return nil
}

// Containerd says where it is.
func (r *Runtime) Containerd() api.Containerd {
	c := r.config.Runtime
	if c.Managed {
		c.Address = filepath.Join(r.state(), "containerd.sock")
	}
	return api.Containerd{Address: c.Address, Namespace: c.Namespace, Snapshotter: c.Snapshotter}
}

// Version of the containerd that served at Start.
func (r *Runtime) Version() string { return r.version }

// Env is what programs of the runtime get: they find each other.
func (r *Runtime) Env() []string { return environment(r.config.Runtime.Path, os.Environ()) }

// PID of a managed containerd, 0 for the host's.
func (r *Runtime) PID() int {
	if r.supervisor == nil {
		return 0
	}
	return r.supervisor.PID()
}

// Leave stops watching containerd, which runs on for the next berthd.
func (r *Runtime) Leave() {
	if r.supervisor != nil {
		r.supervisor.Leave()
	}
}

// Stop ends a managed containerd, running or left by another berthd. The
// containers in it go on and are there again after the next Start.
func (r *Runtime) Stop(ctx context.Context) error {
	if !r.config.Runtime.Managed {
		return nil
	}
	if r.supervisor == nil {
		r.supervisor = supervise.New(r.program(""), r.log)
	}
	if err := r.supervisor.Stop(ctx); err != nil {
		return err
	}
	address := r.Containerd().Address
	for _, left := range []string{address, address + ".ttrpc"} {
		if err := os.Remove(left); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("stop containerd: %w", err)
		}
	}
	return nil
}

func (r *Runtime) state() string { return filepath.Join(r.config.State, "containerd") }
func (r *Runtime) root() string  { return filepath.Join(r.config.Root, "containerd") }

// run has berthd's own containerd running.
func (r *Runtime) run(ctx context.Context) error {
	found, err := programs.Locate(r.config.Runtime.Path)
	if err != nil {
		return err
	}
	for _, dir := range []string{r.config.Root, r.config.State, r.state()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("prepare containerd: %w", err)
		}
	}
	changed, err := r.configure()
	if err != nil {
		return fmt.Errorf("configure containerd: %w", err)
	}
	r.supervisor = supervise.New(r.program(found[programs.Containerd]), r.log)
	if err := r.supervisor.Start(ctx); err != nil {
		return err
	}
	if changed && r.supervisor.Adopted() {
		r.log.Warn("the configuration of containerd changed and takes effect when it is started anew")
	}
	return nil
}

func (r *Runtime) program(path string) supervise.Program {
	return supervise.Program{
		Name:    "containerd",
		Path:    path,
		Args:    []string{"--config", r.configuration()},
		Env:     environment(r.config.Runtime.Path, os.Environ()),
		Dir:     "/",
		PIDFile: filepath.Join(r.state(), "containerd.pid"),
		LogFile: filepath.Join(r.config.Root, "containerd.log"),
		Ready:   func(ctx context.Context) error { return serving(ctx, r.Containerd().Address) },
	}
}

// environment lets containerd find its shim and runc, and keeps it from
// speaking with systemd in berthd's name.
func environment(dir string, from []string) []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	var env []string
	for _, v := range from {
		switch name, value, _ := strings.Cut(v, "="); name {
		case "PATH":
			path = value
		case "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM":
		default:
			env = append(env, v)
		}
	}
	return append(env, "PATH="+dir+":"+path)
}
