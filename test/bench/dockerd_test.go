package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/cgroup"
	"gitlab.com/berth-ci/berth/test/containerdtest"
)

// dockerd is a docker daemon on a containerd of its own, both below dir. It
// makes no networks: containers have the host's, which costs them least.
type dockerd struct {
	dir            string
	cgroup         string
	client         *client.Client
	cmd            *exec.Cmd
	exited         chan error
	stopContainerd func()
}

func startDockerd(ctx context.Context, dir string) (_ *dockerd, err error) {
	d := &dockerd{dir: dir, cgroup: fmt.Sprintf("/berth-bench-%d", os.Getpid()), exited: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start dockerd: %w", err), d.stop(context.WithoutCancel(ctx)))
		}
	}()
	programs, err := containerdtest.Programs()
	if err != nil {
		return nil, err
	}
	var address string
	if address, d.stopContainerd, err = containerdtest.Start(filepath.Join(dir, "containerd")); err != nil {
		return nil, err
	}
	// Nothing of the host's daemon.json.
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(d.log())
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	d.cmd = exec.Command(filepath.Join(programs, "dockerd"), "--config-file", config, "--host", d.host(),
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--containerd", address, "--feature", "containerd-snapshotter=true", "--cgroup-parent", d.cgroup,
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
	d.cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the caller
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		return nil, err
	}
	go func() { d.exited <- d.cmd.Wait() }()
	if d.client, err = client.New(client.WithHost(d.host())); err != nil {
		return nil, err
	}
	return d, d.serving(ctx)
}

func (d *dockerd) host() string { return "unix://" + filepath.Join(d.dir, "docker.sock") }

func (d *dockerd) log() string { return filepath.Join(d.dir, "dockerd.log") }

// serving waits until it answers.
func (d *dockerd) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it did not answer within a minute"))
	defer cancel()
	for {
		if _, err := d.client.Ping(ctx, client.PingOptions{}); err == nil {
			return nil
		}
		select {
		case err := <-d.exited:
			d.cmd = nil
			log, _ := os.ReadFile(d.log())
			return fmt.Errorf("it ended: %w\n%s", err, bytes.TrimSpace(log))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *dockerd) pull(ctx context.Context, image string) error {
	pulling, err := d.client.ImagePull(ctx, image, client.ImagePullOptions{})
	if err == nil {
		err = pulling.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("pull image %s: %w", image, err)
	}
	return nil
}

// stop ends both daemons and removes all that they made.
func (d *dockerd) stop(ctx context.Context) error {
	var errs []error
	if d.client != nil {
		errs = append(errs, d.client.Close())
	}
	if d.cmd != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // else it has ended
		select {
		case err := <-d.exited:
			errs = append(errs, err)
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("stop dockerd: %w", context.Cause(ctx)), d.cmd.Process.Kill(), <-d.exited)
		}
	}
	if d.stopContainerd != nil {
		d.stopContainerd()
	}
	// A Ctrl-C reaches containerd first, which then ends without its shims.
	errs = append(errs, d.killShims())
	tree, err := cgroup.Host()
	if err == nil {
		err = tree.Remove(ctx, d.cgroup)
	}
	return errors.Join(append(errs, err, mount.UnmountRecursive(d.dir, unix.MNT_DETACH), os.RemoveAll(d.dir))...)
}

// killShims ends the processes that name a file of dockerd's as an argument.
func (d *dockerd) killShims() error {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range files {
		command, _ := os.ReadFile(file) // fails for a process that has just ended
		if !bytes.Contains(command, []byte("\x00"+d.dir+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return err
		}
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
	}
	return nil
}
