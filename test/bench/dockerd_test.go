package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/cgroup"
	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/test/containerdtest"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// dockerd is a docker daemon on a containerd of its own, both below dir. Its
// networks are as it makes them by default, in a namespace of its own: bridge,
// links and rules end with it, and the host has none of them.
type dockerd struct {
	dir            string
	cgroup         string
	client         *client.Client
	cmd            *exec.Cmd
	exited         chan error
	stopContainerd func()
	mirror         *http.Server // of the registry, where dockerd looks for it
}

// startDockerd starts one that reaches a node's outside and, at its address on
// the host's loopback, a registry.
func startDockerd(ctx context.Context, dir string, node *testnode.Node, registry string) (_ *dockerd, err error) {
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
	if err := d.openNetwork(node, registry); err != nil {
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
		"--containerd", address, "--feature", "containerd-snapshotter=true", "--cgroup-parent", d.cgroup)
	d.cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the caller
	if err := namespace.Do(d.netns(), d.cmd.Start); err != nil {
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

func (d *dockerd) netns() string { return filepath.Join(d.dir, "netns") }

// openNetwork makes the namespace. GitLab is one hop behind it, as it is behind
// the node.
func (d *dockerd) openNetwork(node *testnode.Node, registry string) error {
	var loopback net.Listener
	if err := namespace.Create(d.netns(), func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			loopback, err = net.Listen("tcp", registry)
		}
		return err
	}); err != nil {
		return err
	}
	d.mirror = &http.Server{
		Handler:           httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry}),
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = d.mirror.Serve(loopback) }() // ends with stop
	return node.Connect(d.netns())
}

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
	if d.mirror != nil {
		errs = append(errs, d.mirror.Close())
	}
	tree, err := cgroup.Host()
	if err == nil {
		err = tree.Remove(ctx, d.cgroup)
	}
	return errors.Join(append(errs, err, mount.UnmountRecursive(d.dir, unix.MNT_DETACH), os.RemoveAll(d.dir))...)
}
