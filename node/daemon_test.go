package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/miekg/dns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cgroup"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/node/resolver"
	"gitlab.com/berth-ci/berth/node/runtime"
	"gitlab.com/berth-ci/berth/test/containerdtest"
)

// asDaemon names the configuration with which the test binary is berthd.
const asDaemon = "BERTHD_TEST_CONFIG"

func TestMain(m *testing.M) {
	switch file := os.Getenv(asDaemon); {
	case len(os.Args) > 3 && os.Args[1] == "resolver": // as berthd starts it
		os.Exit(process(func(ctx context.Context, log *logrus.Entry) error {
			return ServeResolver(ctx, os.Args[3], "test", log)
		}))
	case len(os.Args) > 3 && os.Args[1] == "relay":
		os.Exit(process(func(ctx context.Context, log *logrus.Entry) error {
			return ServeRelay(ctx, os.Args[3], "test", log)
		}))
	case file != "":
		os.Exit(process(func(ctx context.Context, log *logrus.Entry) error {
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			return Run(ctx, c, "test", log)
		}))
	}
	os.Exit(m.Run())
}

func process(run func(context.Context, *logrus.Entry) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, logrus.NewEntry(logrus.New())); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// berthd is a real daemon in a process of its own, with all it needs.
type berthd struct {
	t      testing.TB
	dir    string
	file   string
	config *config.Config
	client *api.Client
	cmd    *exec.Cmd
	// program is the test binary, or a copy of it: another build.
	program string
}

// newBerthd writes a configuration, the profiles of which are given.
func newBerthd(t testing.TB, profiles string) *berthd {
	if why := containerdtest.Missing(); why != "" {
		t.Skip(why)
	}
	programs := os.Getenv(containerdtest.Env)
	if programs == "" {
		var err error
		programs, err = filepath.Abs("../bin/runtime")
		require.NoError(t, err)
	}
	dir, err := os.MkdirTemp("", "berthd") //nolint:usetesting // sockets need a short path
	require.NoError(t, err)
	b := &berthd{t: t, dir: dir, file: filepath.Join(dir, "berthd.toml"), program: "/proc/self/exe"}
	require.NoError(t, os.WriteFile(b.file, fmt.Appendf(nil, `
root = "%[1]s/root"
state = "%[1]s/state"
[runtime]
path = "%[2]s"
[network]
instance = "t%[3]d"
subnet = "10.213.0.0/20"
uplinks = "100.97.0.0/20"
pool = 2
[limits]
cgroup = "/berth-test-%[4]d"
%[5]s`, dir, programs, os.Getpid()%1000, os.Getpid(), profiles), 0o600))
	b.config, err = config.Load(b.file)
	require.NoError(t, err)
	b.client = api.NewClient(b.config.Socket)
	t.Cleanup(b.cleanup)
	return b
}

// start starts the daemon and waits until it serves.
func (b *berthd) start() {
	b.t.Helper()
	log, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(b.t, err)
	defer log.Close()
	b.cmd = exec.Command(b.program)
	b.cmd.Env = append(os.Environ(), asDaemon+"="+b.file)
	b.cmd.Stderr = log
	require.NoError(b.t, b.cmd.Start())
	ended := make(chan struct{})
	cmd := b.cmd
	go func() { _ = cmd.Wait(); close(ended) }()
	for {
		if _, err := b.client.Version(context.Background()); err == nil {
			return
		}
		select {
		case <-ended:
			require.FailNow(b.t, "berthd ended", b.log())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (b *berthd) logFile() string { return filepath.Join(b.dir, "berthd.log") }

// log is all that the daemon said so far.
func (b *berthd) log() string {
	text, err := os.ReadFile(b.logFile())
	require.NoError(b.t, err)
	return string(text)
}

// end ends the daemon with a signal and waits until it is gone.
func (b *berthd) end(sig syscall.Signal) {
	require.NoError(b.t, b.cmd.Process.Signal(sig))
	require.Eventually(b.t, func() bool { return b.cmd.Process.Signal(syscall.Signal(0)) != nil }, time.Minute, time.Millisecond)
}

// idle tells whether the daemon runs and has no jobs.
func (b *berthd) idle() bool {
	jobs, err := b.client.Jobs(context.Background())
	return err == nil && len(jobs) == 0
}

// cleanup ends the daemon, and whatever a failed test left.
func (b *berthd) cleanup() {
	if b.t.Failed() {
		b.t.Log(b.log())
	}
	if b.cmd != nil && !b.idle() {
		if b.cmd.Process.Signal(syscall.Signal(0)) == nil {
			b.end(syscall.SIGKILL)
		}
		// Without a journal, whatever job there is is released.
		require.NoError(b.t, os.RemoveAll(journalFile(b.config)))
		b.start()
		require.Eventually(b.t, b.idle, time.Minute, 10*time.Millisecond)
	}
	if b.cmd != nil {
		b.end(syscall.SIGTERM)
	}
	rt := runtime.New(b.config, 0, logrus.NewEntry(logrus.New()))
	require.NoError(b.t, rt.Stop(context.Background()))
	tree, err := cgroup.Host()
	require.NoError(b.t, err)
	require.NoError(b.t, tree.Remove(context.Background(), b.config.Limits.Cgroup))
	require.NoError(b.t, mount.UnmountRecursive(b.dir, unix.MNT_DETACH))
	require.NoError(b.t, os.RemoveAll(b.dir))
}

// connect connects to the daemon's containerd.
func (b *berthd) connect(a *api.Admission) *containerd.Client {
	client, err := containerd.New(a.Containerd.Address, containerd.WithDefaultNamespace(a.Containerd.Namespace))
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = client.Close() })
	return client
}

// runContainer starts a container of a job as prepare does: under its lease,
// in its cgroup and network, with its label.
func (b *berthd) runContainer(a *api.Admission, args ...string) containerd.Task {
	client := b.connect(a)
	ctx := leases.WithLease(b.t.Context(), a.Lease)
	id := container.ID(a.Job, container.RoleBuild)
	mounts, err := client.SnapshotService(a.Containerd.Snapshotter).Prepare(ctx, id, "")
	require.NoError(b.t, err)
	busybox, err := exec.LookPath("busybox")
	require.NoError(b.t, err)
	program, err := os.ReadFile(busybox)
	require.NoError(b.t, err)
	require.NoError(b.t, mount.WithTempMount(ctx, mounts, func(root string) error {
		return os.WriteFile(filepath.Join(root, "busybox"), program, 0o755)
	}))
	c, err := client.NewContainer(ctx, id,
		containerd.WithSnapshotter(a.Containerd.Snapshotter),
		containerd.WithSnapshot(id),
		containerd.WithContainerLabels(map[string]string{container.JobLabel: a.Job}),
		containerd.WithNewSpec(
			oci.WithProcessArgs(append([]string{"/busybox"}, args...)...),
			oci.WithCgroup(a.Cgroup+"/build"),
			oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: a.Network.Netns}),
			oci.WithMounts([]specs.Mount{{Destination: "/builds", Type: "bind", Source: a.Dirs.Builds, Options: []string{"rbind", "rw"}}}),
		))
	require.NoError(b.t, err)
	task, err := c.NewTask(ctx, cio.NullIO)
	require.NoError(b.t, err)
	require.NoError(b.t, task.Start(ctx))
	return task
}

// nothingLeft asserts that a job left nothing on the node.
func (b *berthd) nothingLeft(a *api.Admission) {
	b.t.Helper()
	require.Eventually(b.t, b.idle, time.Minute, time.Millisecond)
	ctx := context.Background()
	client := b.connect(a)
	jobs, err := container.Jobs(ctx, client)
	require.NoError(b.t, err)
	require.Empty(b.t, jobs)
	containers, err := client.Containers(ctx)
	require.NoError(b.t, err)
	require.Empty(b.t, containers)
	_, err = client.SnapshotService(a.Containerd.Snapshotter).Stat(ctx, container.ID(a.Job, container.RoleBuild))
	require.Error(b.t, err)
	tree, err := cgroup.Host()
	require.NoError(b.t, err)
	children, err := tree.Children(b.config.Limits.Cgroup)
	require.NoError(b.t, err)
	require.Empty(b.t, children)
	require.NoDirExists(b.t, a.Dirs.Job)
	for _, link := range b.ourLinks() {
		require.NotContains(b.t, link.Alias, a.Job)
		require.NotRegexp(b.t, "^be", link.Name, "a service's link")
	}
	netns, err := os.ReadDir(netnsDir(b.config))
	require.NoError(b.t, err)
	require.LessOrEqual(b.t, len(netns), b.config.Network.Pool, "but for those that wait for jobs")
	require.Eventually(b.t, func() bool {
		trash, err := os.ReadDir(filepath.Join(b.config.Root, "trash"))
		return err == nil && len(trash) == 0
	}, 10*time.Second, time.Millisecond)
}

// ourLinks lists the links on the node that the daemon made.
func (b *berthd) ourLinks() (ours []*netlink.LinkAttrs) {
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // others make and remove links meanwhile
		links, err = netlink.LinkList()
	}
	require.NoError(b.t, err)
	for _, l := range links {
		if strings.Contains(l.Attrs().Name, b.config.Network.Instance+"-") {
			ours = append(ours, l.Attrs())
		}
	}
	return ours
}

func (b *berthd) admit(r api.AdmitRequest) *api.Admission {
	b.t.Helper()
	a, err := b.client.Admit(b.t.Context(), r, silent)
	require.NoError(b.t, err)
	return a
}

func TestDaemonLeavesNothing(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	r := request(t, 1, self(t))
	a := b.admit(r)
	task := b.runContainer(a, "sleep", "600")
	for _, link := range []string{a.Network.Netns, a.Network.Services[0].Netns} {
		require.FileExists(t, link)
	}
	held, err := b.connect(a).LeasesService().List(t.Context(), "id=="+a.Lease)
	require.NoError(t, err)
	require.Len(t, held, 1)
	require.Equal(t, a.Job, held[0].Labels[container.JobLabel])
	pid := task.Pid()

	require.NoError(t, b.client.Release(t.Context(), a.Job))
	b.nothingLeft(a)
	require.ErrorIs(t, syscall.Kill(int(pid), 0), syscall.ESRCH)
	require.NoError(t, b.client.Release(t.Context(), a.Job))

	b.end(syscall.SIGTERM)
	b.cmd = nil
	require.Empty(t, b.ourLinks(), "nor does berthd, once there are no jobs")
	require.NoFileExists(t, b.config.Socket)
	require.NoFileExists(t, a.Containerd.Address)
}

func TestDaemonKilledDuringAJob(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	runner, endRunner := otherRunner(t)
	kept, lost := request(t, 1, self(t)), request(t, 2, runner)
	a, other := b.admit(kept), b.admit(lost)
	task := b.runContainer(a, "sleep", "600")
	b.runContainer(other, "sleep", "600")

	b.end(syscall.SIGKILL)
	require.NoError(t, syscall.Kill(int(task.Pid()), 0), "the job goes on")
	endRunner() // while nobody looks
	b.start()   // its socket is stale
	again, err := b.client.Admission(t.Context(), a.Job)
	require.NoError(t, err)
	require.Equal(t, a, again)
	require.Eventually(t, func() bool {
		jobs, err := b.client.Jobs(t.Context())
		return err == nil && len(jobs) == 1
	}, time.Minute, 5*time.Millisecond, "the job without a runner is released")
	status, err := task.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, containerd.Running, status.Status)
	require.NoError(t, b.client.Release(t.Context(), a.Job))
	b.nothingLeft(a)
	b.nothingLeft(other)
}

func TestDaemonKilledWhileItWorks(t *testing.T) {
	b := newBerthd(t, "")
	r := request(t, 1, self(t))
	for i := range 8 { // at other moments of the admission and the release
		b.start()
		done := make(chan error, 1)
		go func() {
			a, err := b.client.Admit(context.Background(), r, silent)
			if err == nil {
				err = b.client.Release(context.Background(), a.Job)
			}
			done <- err
		}()
		time.Sleep(time.Duration(i) * 8 * time.Millisecond)
		b.end(syscall.SIGKILL)
		t.Log("cut off:", <-done)
	}
	b.start()
	a := b.admit(r) // prepare is tried again
	b.runContainer(a, "sleep", "600")
	require.NoError(t, b.client.Release(t.Context(), a.Job))
	b.nothingLeft(a)
}

func TestDaemonReaps(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	runner, endRunner := otherRunner(t)
	a := b.admit(request(t, 1, runner))
	b.runContainer(a, "sleep", "600")
	endRunner()
	b.nothingLeft(a)
}

func TestDaemonAnswersNames(t *testing.T) {
	b := newBerthd(t, "[profile.default]\nextra_hosts = [\"mirror:192.0.2.7\"]\n")
	b.start()
	r := request(t, 1, self(t))
	a := b.admit(r)
	names := b.looksUp(a)
	require.Equal(t, a.Network.Address.String(), names("build"))
	require.Equal(t, a.Network.Services[0].Address.String(), names("db"))
	require.Equal(t, a.Network.Services[0].Address.String(), names("postgres"))
	require.Equal(t, "192.0.2.7", names("mirror"))

	// A resolver that is started again learns what the last one knew.
	v, err := resolver.NewClient(resolverSocket(b.config)).Version(t.Context())
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(v.PID, syscall.SIGKILL))
	require.Eventually(t, func() bool { return names("db") == a.Network.Services[0].Address.String() }, 20*time.Second, 10*time.Millisecond)

	// It does not end with berthd, which finds it again.
	b.end(syscall.SIGKILL)
	require.Equal(t, a.Network.Services[0].Address.String(), names("db"))
	b.start()
	require.Equal(t, a.Network.Services[0].Address.String(), names("db"))
	require.NoError(t, b.client.Release(t.Context(), a.Job))
	b.nothingLeft(a)
}

// looksUp asks a job's nameserver from within its namespace.
func (b *berthd) looksUp(a *api.Admission) func(name string) string {
	return func(name string) (answer string) {
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
		_ = namespace.Do(a.Network.Netns, func() error {
			m, err := dns.Exchange(q, net.JoinHostPort(a.Network.Address.String(), "53"))
			if err == nil && len(m.Answer) > 0 {
				answer = m.Answer[0].(*dns.A).A.String()
			}
			return err
		})
		return answer
	}
}

func TestDaemonWithADamagedJournal(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	a := b.admit(request(t, 1, self(t)))
	b.runContainer(a, "sleep", "600")
	b.end(syscall.SIGKILL)
	require.NoError(t, os.WriteFile(filepath.Join(b.config.Root, "journal.db"), bytes.Repeat([]byte("x"), 40000), 0o600))
	b.start()
	require.Contains(t, b.log(), "the journal was damaged")
	b.nothingLeft(a)
	kept, err := filepath.Glob(filepath.Join(b.config.Root, "journal.db.corrupt-*"))
	require.NoError(t, err)
	require.Len(t, kept, 1)
}

func TestDaemonRemovesLeftovers(t *testing.T) {
	b := newBerthd(t, "")
	lost := "j7-0123abcd"
	for _, dir := range []string{"jobs/" + lost + "/builds", "trash/" + lost + ".1/builds"} {
		require.NoError(t, os.MkdirAll(filepath.Join(b.config.Root, dir), 0o755))
	}
	tree, err := cgroup.Host()
	require.NoError(t, err)
	require.NoError(t, tree.Create(filepath.Join(b.config.Limits.Cgroup, lost), executor.Limits{}))
	b.start()
	a := b.admit(request(t, 1, self(t)))
	require.NoError(t, b.client.Release(t.Context(), a.Job))
	b.nothingLeft(a)
	require.NoDirExists(t, filepath.Join(b.config.Root, "jobs", lost))
}

// TestDaemonThatCannotStart leaves no containerd that nobody would end.
func TestDaemonThatCannotStart(t *testing.T) {
	b := newBerthd(t, "")
	other, err := net.Listen("unix", "@berth-network-"+b.config.Network.Instance)
	require.NoError(t, err)
	defer other.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asDaemon+"="+b.file)
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "started containerd")
	require.Contains(t, string(out), "is in use on this host")
	require.NoFileExists(t, filepath.Join(b.config.State, "containerd", "containerd.pid"))
}

func TestDaemonTwice(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	second := exec.Command("/proc/self/exe")
	second.Env = append(os.Environ(), asDaemon+"="+b.file)
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit))
	require.Contains(t, string(out), "another berthd uses")
	_, err = b.client.Version(t.Context())
	require.NoError(t, err)
}

func TestDaemonTwoServersSameID(t *testing.T) {
	b := newBerthd(t, "")
	b.start()
	first, second := request(t, 1, self(t)), request(t, 1, self(t))
	second.Request.Job.Server = "https://gitlab.example.org"
	a, other := b.admit(first), b.admit(second)
	require.NotEqual(t, a.Job, other.Job)
	require.NotEqual(t, a.Network.Netns, other.Network.Netns)
	require.NotEqual(t, a.Dirs.Cache, other.Dirs.Cache)
	require.NoError(t, b.client.Release(t.Context(), a.Job))
	_, err := b.client.Admission(t.Context(), other.Job)
	require.NoError(t, err)
	require.NoError(t, b.client.Release(t.Context(), other.Job))
	b.nothingLeft(a)
}

func TestDaemonQueues(t *testing.T) {
	b := newBerthd(t, "[profile.default]\nconcurrent = 2\n")
	b.start()
	const jobs = 8
	done := make(chan error, jobs)
	for n := range jobs {
		r := request(t, int64(n+1), self(t))
		go func() {
			a, err := b.client.Admit(context.Background(), r, silent)
			if err == nil {
				running, _ := b.client.Jobs(context.Background())
				admitted := 0
				for _, j := range running {
					if j.State == api.StateAdmitted {
						admitted++
					}
				}
				if admitted > 2 {
					err = fmt.Errorf("%d jobs run", admitted)
				}
				err = errors.Join(err, b.client.Release(context.Background(), a.Job))
			}
			done <- err
		}()
	}
	for range jobs {
		require.NoError(t, <-done)
	}
}

func BenchmarkAdmitRelease(b *testing.B) {
	d := newBerthd(b, "")
	d.start()
	r := request(b, 1, self(b))
	r.Request.Services = nil
	var admit, release time.Duration
	for b.Loop() {
		b.StopTimer()
		require.Eventually(b, func() bool {
			prepared, err := os.ReadDir(netnsDir(d.config))
			return err == nil && d.idle() && len(prepared) == d.config.Network.Pool
		}, 10*time.Second, time.Millisecond)
		b.StartTimer()
		begin := time.Now()
		a := d.admit(r)
		admit += time.Since(begin)
		begin = time.Now()
		require.NoError(b, d.client.Release(b.Context(), a.Job))
		release += time.Since(begin)
	}
	b.ReportMetric(admit.Seconds()*1000/float64(b.N), "ms/admit")
	b.ReportMetric(release.Seconds()*1000/float64(b.N), "ms/release")
}
