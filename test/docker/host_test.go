package docker

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/docker/engine"
	"gitlab.com/berth-ci/berth/node/docker/host"
	"gitlab.com/berth-ci/berth/test/containerdtest"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// hostDockerd is a dockerd that berthd has nothing to do with.
type hostDockerd struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
}

func (d *hostDockerd) socket() string { return filepath.Join(d.dir, "docker.sock") }

// start starts it, as the host's init would.
func (d *hostDockerd) start(args ...string) {
	d.t.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(d.t, err)
	defer log.Close()
	// Neither a bridge nor rules of its own: other tests are on this host.
	all := append([]string{
		"--host", "unix://" + d.socket(), "--data-root", filepath.Join(d.dir, "root"), "--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "docker.pid"), "--bridge", "none", "--iptables=false", "--ip6tables=false",
	}, args...)
	d.cmd = exec.Command(filepath.Join(node.Config.Runtime.Path, "dockerd"), all...)
	d.cmd.Env = append(os.Environ(), "PATH="+node.Config.Runtime.Path+":"+os.Getenv("PATH"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	require.NoError(d.t, d.cmd.Start())
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() { _ = cmd.Wait(); close(exited) }() // it says more in its log
	e := engine.New(d.socket())
	defer e.Close()
	require.Eventually(d.t, func() bool { return e.Serving(d.t.Context()) == nil }, time.Minute, 50*time.Millisecond, "%s", d.log())
}

func (d *hostDockerd) log() string {
	text, _ := os.ReadFile(filepath.Join(d.dir, "dockerd.log"))
	return tail(string(text))
}

func (d *hostDockerd) stop() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.exited:
	case <-time.After(time.Minute):
		_ = d.cmd.Process.Kill()
		<-d.exited
		d.t.Error("dockerd does not end")
	}
	d.cmd = nil
	_ = unix.Unmount(filepath.Join(d.dir, "root"), unix.MNT_DETACH)
	_ = unix.Unmount(filepath.Join(d.dir, "exec", "netns"), unix.MNT_DETACH)
}

// aside starts a containerd, and makes a dockerd for it.
func aside(t *testing.T) (*hostDockerd, api.Containerd) {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	dir := t.TempDir()
	address, stop, err := containerdtest.Start(filepath.Join(dir, "containerd"))
	require.NoError(t, err)
	t.Cleanup(stop)
	d := &hostDockerd{t: t, dir: dir}
	t.Cleanup(d.stop)
	return d, api.Containerd{Address: address, Namespace: "moby", Snapshotter: "overlayfs"}
}

// TestHostDaemon has jobs use the dockerd and the containerd of the host, which
// is started after berthd, and again while a job runs.
func TestHostDaemon(t *testing.T) {
	d, at := aside(t)
	busybox := registry.Image(images.Busybox)
	n, err := testnode.Start(t.Context(), testnode.Config{Programs: programs, Images: registry, Docker: true, Change: func(c *config.Config) {
		c.Runtime.Managed, c.Runtime.Address = false, at.Address
		c.Docker.Managed, c.Docker.Address = false, d.socket()
		p := testnode.Profile(registry)
		p.Mounts = []string{cli + ":/usr/local/bin/docker:ro", filepath.Join(c.Runtime.Path, "docker-buildx") + ":/usr/libexec/docker/cli-plugins/docker-buildx:ro"}
		c.Profiles["default"] = p
	}})
	require.NoError(t, err)
	defer func() { require.NoError(t, n.Stop(context.WithoutCancel(t.Context()))) }()
	gl, err := n.GitLab()
	require.NoError(t, err)
	defer gl.Close()
	p, err := gl.AddProject("group/project", fstest.MapFS{"README": {Data: []byte("read me\n")}})
	require.NoError(t, err)
	j, err := gl.Enqueue(gitlab.JobSpec{Project: p, Name: "host", Tags: []string{"default"}, Image: gitlab.Image{Name: registry.Image(images.Git)}, Script: []string{
		`if docker version >/tmp/out 2>&1; then exit 1; fi; cat /tmp/out; echo "no docker yet"`,
		`until docker version >/dev/null 2>&1; do sleep 0.1; done`,
		`docker run --rm ` + busybox + ` echo "hello from a container"`,
		`mkdir context; printf 'FROM ` + busybox + `\nRUN echo built >/built\n' >context/Dockerfile`,
		`docker build -t app:1 context && docker run --rm app:1 cat /built`,
		`docker run -d --name web -p 8080:8080 -e GREETING=welcome ` + registry.Image(images.Web),
		`until exec 3<>/dev/tcp/localhost/8080; do sleep 0.1; done; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`,
		`docker network create mine; docker run -d --name aa --network mine -v named:/data ` + busybox + ` sleep 1000`,
		`docker run --rm --network mine ` + busybox + ` nslookup aa`,
		`echo "ready for a restart"; until [ -e /builds/go ]; do sleep 0.1; done`,
		`until docker version >/dev/null 2>&1; do sleep 0.1; done`,
		`docker start web`,
		`until exec 3<>/dev/tcp/localhost/8080; do sleep 0.1; done; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`,
		`docker run --rm app:1 echo "hello again"`,
	}})
	require.NoError(t, err)
	r, err := runner.Start(programs.Runner, t.TempDir(), runner.Config{Concurrent: 1, CheckInterval: 1, Runners: []runner.Runner{n.Runner("default", gl.URL(), gl.AddRunner("default"))}}, nil)
	require.NoError(t, err)
	defer func() {
		j.Cancel() // unless it has ended
		require.NoError(t, r.Stop(context.WithoutCancel(t.Context())))
	}()

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	await := func(text string) {
		t.Helper()
		if err := j.WaitLog(ctx, text); err != nil {
			t.Fatalf("%v\n%s\n%s\n%s", err, j.Log(), tail(n.Log()), d.log())
		}
	}
	await("\nno docker yet\n")
	require.Contains(t, j.Log(), "use dockerd at "+d.socket())
	require.Contains(t, j.Log(), "start it, name its socket in docker.address, or set docker.managed = true")
	settings := []string{"--containerd", at.Address, "--feature", "containerd-snapshotter=true", "--exec-opt", "native.cgroupdriver=cgroupfs"}
	d.start(settings...)
	await("\nready for a restart\n")
	for _, text := range []string{"\nhello from a container\n", "\nbuilt\n", "\nwelcome\n"} {
		require.Contains(t, j.Log(), text)
	}
	all, err := n.Client.Jobs(ctx)
	require.NoError(t, err)
	require.Len(t, all, 1)
	admission, err := n.Client.Admission(ctx, all[0].Key)
	require.NoError(t, err)
	d.stop()
	d.start(settings...)
	require.NoError(t, os.WriteFile(filepath.Join(admission.Dirs.Builds, "go"), nil, 0o644))
	state, err := j.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, gitlab.Success, state, "%s\n%s\n%s", j.Log(), tail(n.Log()), d.log())
	require.Contains(t, j.Log(), "\nhello again\n")
	require.NoError(t, n.AwaitClean(ctx))
	require.Empty(t, leftOn(t, d.socket()))
}

// TestHostDaemonSettings has real daemons that cannot be the jobs'.
func TestHostDaemonSettings(t *testing.T) {
	d, at := aside(t)
	good := []string{"--containerd", at.Address, "--feature", "containerd-snapshotter=true", "--exec-opt", "native.cgroupdriver=cgroupfs"}
	for name, c := range map[string]struct {
		args []string
		at   api.Containerd
		want string
	}{
		"good":             {good, at, ""},
		"other namespace":  {append(good[:len(good):len(good)], "--containerd-namespace", "other"), at, `it works in namespace "other" of containerd, and jobs in "moby"`},
		"other containerd": {good, api.Containerd{Address: node.Config.State + "/containerd/containerd.sock", Namespace: "moby", Snapshotter: "overlayfs"}, "it works on another containerd (" + at.Address + ")"},
		"other snapshots":  {append(good[:len(good):len(good)], "--storage-driver", "native"), at, "it uses the snapshotter native, and jobs overlayfs"},
		"own image store":  {[]string{"--containerd", at.Address, "--feature", "containerd-snapshotter=false", "--storage-driver", "vfs"}, at, "it keeps images in its own store (vfs)"},
	} {
		t.Run(name, func(t *testing.T) {
			d.start(c.args...)
			defer d.stop()
			version, err := host.Check(t.Context(), d.socket(), c.at)
			if c.want == "" {
				require.NoError(t, err)
				require.Contains(t, version, "29.")
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}
