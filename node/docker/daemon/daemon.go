// Package daemon runs the node's dockerd: one of berthd's own, on the
// containerd that jobs run in, or the host's. No job gets its socket.
package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/docker/engine"
	"gitlab.com/berth-ci/berth/node/docker/host"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
	"gitlab.com/berth-ci/berth/node/supervise"
)

// Daemon is the node's dockerd. It is started in the background, so that
// neither berthd's start nor a job's first call waits for all of it.
type Daemon struct {
	Engine *engine.Engine

	config     *config.Config
	containerd api.Containerd
	env        []string
	log        *logrus.Entry
	supervisor *supervise.Supervisor // nil where it is the host's

	started chan struct{} // closed when it serves, or cannot
	mu      sync.Mutex
	err     error // valid then; of the host's, it may change
	cancel  context.CancelFunc
	looking sync.WaitGroup
	stop    sync.Once
}

// New makes the daemon as configured. Env is what its process gets.
func New(c *config.Config, containerd api.Containerd, env []string, log *logrus.Entry) *Daemon {
	d := &Daemon{config: c, containerd: containerd, env: env, log: log, started: make(chan struct{})}
	d.Engine = engine.New(d.Socket())
	return d
}

// Socket is where it listens.
func (d *Daemon) Socket() string {
	if d.config.Docker.Managed {
		return filepath.Join(d.state(), "dockerd.sock")
	}
	return d.config.Docker.Address
}

func (d *Daemon) state() string { return filepath.Join(d.config.State, "docker", "daemon") }
func (d *Daemon) root() string  { return filepath.Join(d.config.Root, "docker") }

// Start begins to adopt or start it, and returns at once.
func (d *Daemon) Start(ctx context.Context) {
	ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if d.config.Docker.Managed {
		if err := d.prepare(); err != nil {
			d.fail(err)
			return
		}
	}
	d.looking.Go(func() {
		began := time.Now()
		version, err := d.serve(ctx)
		if err == nil {
			d.serves(version, began)
			close(d.started)
			return
		}
		d.fail(err)
		if d.supervisor == nil {
			d.look(ctx, err)
		}
	})
}

func (d *Daemon) serves(version string, began time.Time) {
	d.log.WithFields(logrus.Fields{"version": version, "took": time.Since(began).Round(time.Millisecond)}).Info("the docker daemon serves")
}

func (d *Daemon) fail(err error) {
	d.set(err)
	d.log.WithError(err).Error("the docker daemon does not run: jobs run without docker")
	close(d.started)
}

func (d *Daemon) set(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = nil
	if err != nil {
		d.err = fmt.Errorf("the node's docker daemon does not run: %w: %w", err, errdefs.ErrUnavailable)
	}
}

// hostRetry is how often a dockerd of the host's is looked for that was not
// there, or not as it has to be: it may be started, or set up, after berthd.
const hostRetry = 2 * time.Second

// look waits for a dockerd of the host's.
func (d *Daemon) look(ctx context.Context, last error) {
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(hostRetry):
		}
		version, err := d.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		d.set(err)
		if err == nil {
			d.serves(version, began)
			return
		}
		if err.Error() != last.Error() {
			d.log.WithError(err).Error("the docker daemon does not run: jobs run without docker")
			last = err
		}
	}
}

// Wait waits until it serves.
func (d *Daemon) Wait(ctx context.Context) error {
	select {
	case <-d.started:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// PID of a managed dockerd.
func (d *Daemon) PID() int {
	if d.supervisor == nil {
		return 0
	}
	return d.supervisor.PID()
}

// serve starts it, or looks for the host's, and tells its version.
func (d *Daemon) serve(ctx context.Context) (version string, err error) {
	if d.supervisor == nil {
		return host.Check(ctx, d.Socket(), d.containerd)
	}
	if err := d.supervisor.Start(ctx); err != nil {
		return "", err
	}
	var v struct{ Version string }
	err = d.Engine.Call(ctx, http.MethodGet, "/version", nil, nil, &v)
	return v.Version, err
}

// prepare makes what dockerd needs and the supervisor.
func (d *Daemon) prepare() error {
	path, err := programs.Find(d.config.Runtime.Path, programs.Dockerd)
	if err != nil {
		return err
	}
	for dir, mode := range map[string]os.FileMode{filepath.Dir(d.state()): 0o711, d.state(): 0o700, d.root(): 0o710} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("prepare dockerd: %w", err)
		}
	}
	file := filepath.Join(d.state(), "daemon.json")
	text, err := d.settings()
	if err != nil {
		return fmt.Errorf("configure dockerd: %w", err)
	}
	if old, err := os.ReadFile(file); err != nil || !bytes.Equal(old, text) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return fmt.Errorf("configure dockerd: %w", err)
		}
	}
	d.supervisor = supervise.New(supervise.Program{
		Name: "dockerd",
		Path: path,
		Args: []string{
			"--config-file", file,
			"--host", "unix://" + d.Socket(),
			// Deprecated, and just what is wanted: after a boot it starts
			// nothing of jobs that are long gone.
			"--restart=false",
		},
		Env:     d.env,
		Dir:     "/",
		PIDFile: filepath.Join(d.state(), "supervised.pid"),
		LogFile: filepath.Join(d.config.Root, "dockerd.log"),
		Ready:   d.Engine.Serving,
	}, d.log)
	return nil
}

// settings is dockerd's daemon.json. All that decides over traffic is
// elsewhere: it makes no rules, no bridge and no address on the node.
func (d *Daemon) settings() ([]byte, error) {
	level := d.config.LogLevel
	if level == "warning" {
		level = "warn"
	}
	settings := map[string]any{
		"containerd":            d.containerd.Address,
		"containerd-namespace":  d.containerd.Namespace,
		"features":              map[string]bool{"containerd-snapshotter": true, "cdi": true},
		"cdi-spec-dirs":         []string{d.config.GPUSpecs()},
		"storage-driver":        d.containerd.Snapshotter,
		"data-root":             d.root(),
		"exec-root":             filepath.Join(d.state(), "exec"),
		"pidfile":               filepath.Join(d.state(), "dockerd.pid"),
		"log-level":             level,
		"bridge":                "none",
		"iptables":              false,
		"ip6tables":             false,
		"ip-forward":            false,
		"userland-proxy":        false,
		"live-restore":          true,
		"exec-opts":             []string{"native.cgroupdriver=cgroupfs"},
		"cgroup-parent":         d.config.Limits.Cgroup,
		"default-address-pools": []map[string]any{{"base": d.config.Docker.Networks.String(), "size": max(24, d.config.Docker.Networks.Bits())}},
		"log-driver":            "json-file",
		"log-opts":              map[string]string{"max-size": "256m", "max-file": "2"},
		// Its own BuildKit is out of reach; and should it be reached, it may
		// do no more than others.
		"builder": map[string]any{"entitlements": map[string]bool{"network-host": false, "security-insecure": false, "device": false}},
	}
	// Without it dockerd looks where distributions have one, and all but
	// `docker run --init` works.
	if path, err := programs.Find(d.config.Runtime.Path, programs.DockerInit); err == nil {
		settings["init-path"] = path
	}
	return json.MarshalIndent(settings, "", "\t")
}

// Leave stops watching it; it runs on.
func (d *Daemon) Leave() {
	d.stop.Do(func() {
		d.settle()
		if d.supervisor != nil && d.err == nil {
			d.supervisor.Leave()
		}
		d.Engine.Close()
	})
}

// Stop ends it. Containers go on, and are there again after the next Start.
func (d *Daemon) Stop(ctx context.Context) (err error) {
	d.stop.Do(func() {
		d.settle()
		d.Engine.Close()
		if d.supervisor != nil {
			err = d.supervisor.Stop(ctx)
		}
		if d.config.Docker.Managed {
			// dockerd mounts its root on itself, and forgets it when it is killed.
			if left := unix.Unmount(d.root(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); left != nil && !errors.Is(left, unix.EINVAL) && !errors.Is(left, unix.ENOENT) {
				err = errors.Join(err, fmt.Errorf("unmount dockerd's root: %w", left))
			}
			if left := os.Remove(d.Socket()); left != nil && !errors.Is(left, os.ErrNotExist) {
				err = errors.Join(err, left)
			}
		}
	})
	return err
}

// settle waits until a start under way has come to an end.
func (d *Daemon) settle() {
	if d.cancel != nil {
		d.cancel()
		<-d.started
		d.looking.Wait()
	}
}
