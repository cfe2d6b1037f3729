package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
)

// configuration reads berthd's; what cannot be read is taken to be the
// default.
func (n *node) configuration(context.Context) []Check {
	const name = "configuration"
	c, err := config.Load(n.Config)
	defer func() {
		if n.Socket == "" {
			n.Socket = n.config.Socket
		}
	}()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		n.config = config.Default()
		return []Check{ok(name, "%s does not exist: the defaults hold", n.Config)}
	case err != nil:
		n.config = config.Default()
		return []Check{fail(name, "Correct the file; berthd --check reads it again.", "%v", err)}
	}
	n.config = c
	return []Check{ok(name, "%s", n.Config)}
}

// daemon asks berthd who it is.
func (n *node) daemon(ctx context.Context) []Check {
	const name = "berthd"
	ctx, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	v, err := api.NewClient(n.Socket).Version(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Check{fail(name, "Start it: systemctl enable --now berthd.", "not running: there is no socket %s", n.Socket)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return []Check{fail(name, "Start it anew: systemctl restart berthd; journalctl -u berthd says why it ended.", "nobody listens at %s any more", n.Socket)}
	case errors.Is(err, fs.ErrPermission):
		return []Check{fail(name, "Run it as root, or add the user to the group of the socket.", "%v", err)}
	case err != nil:
		return []Check{fail(name, "Look at what it logs: journalctl -u berthd.", "no answer from %s: %v", n.Socket, err)}
	}
	n.berthd = v
	checks := []Check{ok(name, "version %s, containerd %s, root %s", v.Berthd, v.Containerd, v.Root)}
	if n.Version != "" && n.Version != v.Berthd {
		checks[0] = warn(name, "Install berth and berthd of one version, and restart berthd; jobs go on meanwhile.", "berth is version %s, berthd %s", n.Version, v.Berthd)
	}
	return append(checks, n.daemonMounts()...)
}

// daemonMounts finds a berthd that has the host's mounts to itself: what it
// mounted for jobs they would see as empty directories.
func (n *node) daemonMounts() []Check {
	pid, err := peer(n.Socket)
	if err != nil {
		return nil // it answered a moment ago and says more about itself there
	}
	if own, host := mountNamespace(pid), mountNamespace(1); own != "" && host != "" && own != host {
		return []Check{fail("mounts of berthd", "Remove PrivateTmp, PrivateMounts, ProtectSystem and the like from its systemd unit.", "berthd (process %d) has a mount namespace of its own, whose mounts jobs do not see", pid)}
	}
	return nil
}

// peer is the process that listens on a socket.
func peer(socket string) (int, error) {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if ctl := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctl != nil {
		return 0, ctl
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

func mountNamespace(pid int) string {
	ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)) // empty where it cannot be told
	return ns
}

// programs finds those of a managed runtime.
func (n *node) programs(ctx context.Context) []Check {
	if !n.config.Runtime.Managed {
		return nil
	}
	const name, remedy = "runtime programs", "Install Berth's runtime programs (make runtime install), or set runtime.managed = false."
	paths, err := programs.Locate(n.config.Runtime.Path)
	if err != nil {
		return []Check{fail(name, remedy, "%v", err)}
	}
	versions := map[string]programs.Version{}
	for name, path := range paths {
		ctx, cancel := context.WithTimeout(ctx, n.Timeout)
		versions[name], err = programs.Ask(ctx, path)
		cancel()
		if err != nil {
			return []Check{fail(name, remedy, "%v", err)}
		}
	}
	return checkPrograms(paths, versions)
}

func checkPrograms(paths map[string]string, versions map[string]programs.Version) []Check {
	c, shim, runc := versions[programs.Containerd], versions[programs.Shim], versions[programs.Runc]
	checks := []Check{ok("containerd program", "%s, version %s", paths[programs.Containerd], c.Number)}
	switch {
	case !c.AtLeast(2, 0):
		checks[0] = fail("containerd program", "Install containerd 2.0 or newer.", "%s is version %s", paths[programs.Containerd], c.Number)
	case c.Number != shim.Number:
		checks[0] = warn("containerd program", "Install containerd and its shim of one version.", "%s is version %s, but %s %s", paths[programs.Containerd], c.Number, paths[programs.Shim], shim.Number)
	}
	switch {
	case !runc.AtLeast(1, 2):
		return append(checks, fail("runc", "Install runc 1.2 or newer.", "%s is version %s", paths[programs.Runc], runc.Number))
	case !runc.Seccomp:
		return append(checks, fail("runc", "Install a runc that was built with -tags seccomp.", "%s can not filter system calls, without which containers do not start", paths[programs.Runc]))
	}
	return append(checks, ok("runc", "%s, version %s with seccomp", paths[programs.Runc], runc.Number))
}

// containerd looks for an answer on its socket.
func (n *node) containerd(ctx context.Context) []Check {
	const name = "containerd"
	address := n.config.Runtime.Address
	if n.config.Runtime.Managed {
		address = filepath.Join(n.config.State, "containerd", "containerd.sock")
	}
	ctx, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	err := speaksHTTP2(ctx, address)
	absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
	switch {
	case err == nil && n.berthd != nil && strings.HasPrefix(strings.TrimPrefix(n.berthd.Containerd, "v"), "1."):
		return []Check{fail(name, "Install containerd 2.0 or newer, or set runtime.managed = true.", "%s is version %s", address, n.berthd.Containerd)}
	case err == nil:
		return []Check{ok(name, "answers at %s", address)}
	case absent && n.config.Runtime.Managed && n.berthd == nil:
		return []Check{ok(name, "not running, and started with berthd")}
	case absent && n.config.Runtime.Managed:
		return []Check{fail(name, "berthd starts it again by itself; if it goes on, look at "+filepath.Join(n.config.Root, "containerd.log")+".", "does not run: %v", err)}
	case absent:
		return []Check{fail(name, "Start it (systemctl start containerd), name its socket in runtime.address, or set runtime.managed = true.", "%v", err)}
	}
	return []Check{fail(name, "Look at what it logs, and restart it; containers go on meanwhile.", "no answer from %s: %v", address, err)}
}

// speaksHTTP2 exchanges the first frames of a connection, as gRPC would.
func speaksHTTP2(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	const settings = 4 // type of a frame; an empty one of it is nine bytes
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return err
	}
	var header [9]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return err
	}
	if header[3] != settings {
		return errors.New("what listens there does not speak gRPC")
	}
	return nil
}
