package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/gputest"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/resolver"
)

// fakes stand in for all that Jobs has things made by. They keep what was
// made, and fail or hang where told to.
type fakes struct {
	mu    sync.Mutex
	made  map[string]bool // "network j1-…"
	calls []string
	// on is called at each step, before it does anything.
	on func(step string) error
}

func (f *fakes) step(ctx context.Context, name string, change func(made map[string]bool)) error {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	on := f.on
	f.mu.Unlock()
	if on != nil {
		if err := on(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.made)
	return nil
}

func (f *fakes) fail(step string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = func(s string) error {
		if s == step {
			return err
		}
		return nil
	}
}

func (f *fakes) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var left []string
	for what := range f.made {
		left = append(left, what)
	}
	slices.Sort(left)
	return left
}

func (f *fakes) count(step string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == step {
			n++
		}
	}
	return n
}

func (f *fakes) put(ctx context.Context, step, what string) error {
	return f.step(ctx, step, func(made map[string]bool) { made[what] = true })
}

func (f *fakes) drop(ctx context.Context, step, what string) error {
	return f.step(ctx, step, func(made map[string]bool) { delete(made, what) })
}

type fakeCaches struct{ *fakes }

func (f fakeCaches) Admit(ctx context.Context, s cache.Start, _ func(string)) (api.Caches, error) {
	return api.Caches{}, errors.Join(f.put(ctx, "admit to caches", "caches "+s.Key), s.Save(cache.Record{Publish: "true"}))
}

func (f fakeCaches) Step(ctx context.Context, _, name string, _ api.CacheStep, say func(string)) (*api.CacheResult, error) {
	say("at " + name)
	return &api.CacheResult{Native: true}, f.step(ctx, name, func(map[string]bool) {})
}

func (f fakeCaches) Release(ctx context.Context, job string) error {
	return f.drop(ctx, "release caches", "caches "+job)
}

type fakeBuilds struct{ *fakes }

func (f fakeBuilds) Serve(r journal.Record) error {
	return f.put(context.Background(), "serve builds", "builds "+r.Job.Key)
}

func (f fakeBuilds) End(ctx context.Context, job string) error {
	return f.drop(ctx, "end builds", "builds "+job)
}

type fakeContainers struct{ *fakes }

func (f fakeContainers) Hold(ctx context.Context, job string) error {
	return f.put(ctx, "hold", "lease "+job)
}

func (f fakeContainers) Kill(ctx context.Context, _ string) error {
	return f.step(ctx, "kill containers", func(map[string]bool) {})
}

func (f fakeContainers) Remove(ctx context.Context, job string) error {
	return f.drop(ctx, "remove containers", "lease "+job)
}

func (f fakeContainers) Jobs(context.Context) ([]string, error) {
	var jobs []string
	for _, what := range f.left() {
		var job string
		if n, _ := fmt.Sscanf(what, "lease %s", &job); n == 1 {
			jobs = append(jobs, job)
		}
	}
	return jobs, nil
}

type fakeNetworks struct{ *fakes }

func (f fakeNetworks) Take(ctx context.Context, job, profile string) (network.Network, error) {
	n := network.Network{Slot: 1, Job: job, Profile: profile, Netns: "/run/netns/1", Gateway: netip.MustParseAddr("10.0.1.1")}
	return n, f.put(ctx, "take", "network "+job)
}

func (f fakeNetworks) Join(ctx context.Context, n network.Network, _ string, nth int) (network.Endpoint, error) {
	e := network.Endpoint{Netns: fmt.Sprintf("%s-%d", n.Netns, nth), Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(3 + nth)})}
	return e, f.step(ctx, "join", func(map[string]bool) {})
}

func (f fakeNetworks) Release(ctx context.Context, n network.Network) error {
	return f.drop(ctx, "release network", "network "+n.Job)
}

type fakeNames struct{ *fakes }

func (f fakeNames) Put(ctx context.Context, job string, _ resolver.Zone) error {
	return f.put(ctx, "put names", "names "+job)
}

func (f fakeNames) Remove(ctx context.Context, job string) error {
	return f.drop(ctx, "remove names", "names "+job)
}

type fakeSockets struct{ *fakes }

func (f fakeSockets) Release(ctx context.Context, _ string) error {
	return f.step(ctx, "release sockets", func(map[string]bool) {})
}

func (f fakeSockets) Jobs(context.Context) ([]string, error) { return nil, nil }

type fakeCgroups struct{ *fakes }

func (f fakeCgroups) Create(path string, _ executor.Limits) error {
	return f.put(context.Background(), "create cgroup", "cgroup "+path)
}

func (f fakeCgroups) Withhold(string, []specs.LinuxDevice) error {
	return f.step(context.Background(), "withhold devices", func(map[string]bool) {})
}

func (f fakeCgroups) Remove(ctx context.Context, path string) error {
	return f.drop(ctx, "remove cgroup", "cgroup "+path)
}

func (f fakeCgroups) Children(string) ([]string, error) { return nil, nil }

// bench is Jobs on fakes.
type bench struct {
	*Jobs
	*fakes
	root    string
	keeper  *gpu.Keeper
	restart func() // as after kill -9
	end     context.CancelCauseFunc
}

func newBench(t testing.TB, profiles map[string]executor.Profile) *bench {
	return newBenchAt(t, t.TempDir(), profiles)
}

func newBenchAt(t testing.TB, root string, profiles map[string]executor.Profile) *bench {
	none := gputest.New(0)
	none.Fail(fmt.Errorf("no NVIDIA driver: %w", errdefs.ErrNotFound))
	return newBenchWith(t, root, profiles, none)
}

// newBenchWith is one with GPUs.
func newBenchWith(t testing.TB, root string, profiles map[string]executor.Profile, driver gpu.Driver) *bench {
	b := &bench{fakes: &fakes{made: map[string]bool{}}, root: root}
	log := logrus.New()
	log.SetOutput(t.Output())
	start := func() {
		dirs, err := openDirs(b.root)
		require.NoError(t, err)
		j, _, err := journal.Open(filepath.Join(b.root, "journal.db"))
		require.NoError(t, err)
		var life context.Context
		life, b.end = context.WithCancelCause(context.Background())
		b.keeper, err = gpu.NewKeeper(driver, gpu.Settings{File: filepath.Join(b.root, "gpu-quarantine.json"), Boot: "this"}, logrus.NewEntry(log))
		require.NoError(t, err)
		b.Jobs = newJobs(life, Settings{Profiles: profiles, Cgroup: "/berth", Boot: "this"}, logrus.NewEntry(log), Parts{
			Journal: j, Dirs: dirs, Cgroups: fakeCgroups{b.fakes}, Containers: fakeContainers{b.fakes},
			Networks: fakeNetworks{b.fakes}, Names: fakeNames{b.fakes}, Sockets: fakeSockets{b.fakes}, Caches: fakeCaches{b.fakes}, Builds: fakeBuilds{b.fakes},
			GPUs: b.keeper,
		})
		records, err := b.Journal.Records()
		require.NoError(t, err)
		retakeGPUs(b.keeper, logrus.NewEntry(log), records)
		dirs.retake(records...)
		b.attending.Go(func() { b.keeper.Run(life) })
	}
	stop := func() {
		b.end(errShutdown)
		b.attending.Wait()
		require.NoError(t, b.Journal.Close())
	}
	b.restart = func() {
		stop()
		start()
		records, err := b.Journal.Records()
		require.NoError(t, err)
		alive, dead := survivors(records, "this")
		b.Replay(context.Background(), alive, dead)
	}
	start()
	t.Cleanup(func() { stop() })
	return b
}

var plain = map[string]executor.Profile{"default": executor.DefaultProfile()}

// limited has room for one job at a time.
func limited(wait time.Duration) map[string]executor.Profile {
	p := executor.DefaultProfile()
	p.Concurrent, p.Wait = 1, executor.Duration(wait)
	return map[string]executor.Profile{"default": p}
}

func request(t testing.TB, id int64, runner api.Process) api.AdmitRequest {
	return api.AdmitRequest{
		Profile: "default",
		Request: executor.Request{
			Job:      executor.Identity{Server: "https://gitlab.example.com", ID: id, ProjectID: 7, Project: "group/project"},
			Image:    executor.ImageRequest{Name: "busybox"},
			Services: []executor.ImageRequest{{Name: "postgres:17", Aliases: []string{"db"}}},
		},
		Runner:  runner,
		TempDir: t.TempDir(),
	}
}

// self is this process, a runner that lives as long as the test.
func self(t testing.TB) api.Process {
	p, err := api.FindProcess(os.Getpid())
	require.NoError(t, err)
	return p
}

// otherRunner starts a process that can be killed.
func otherRunner(t testing.TB) (p api.Process, kill func()) {
	cmd := exec.Command("sleep", "600")
	require.NoError(t, cmd.Start())
	kill = sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(kill)
	p, err := api.FindProcess(cmd.Process.Pid)
	require.NoError(t, err)
	return p, kill
}

func silent(string) {}

// empty asserts that nothing is left of any job.
func (b *bench) empty(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool { return len(b.List()) == 0 }, 10*time.Second, time.Millisecond)
	require.Empty(t, b.left())
	records, err := b.Journal.Records()
	require.NoError(t, err)
	require.Empty(t, records)
	jobs, err := b.Dirs.jobs()
	require.NoError(t, err)
	require.Empty(t, jobs)
}

// gone waits until a job is released.
func (b *bench) gone(t testing.TB, key string) {
	t.Helper()
	now, changes, stop := b.Watch()
	defer stop()
	if !slices.ContainsFunc(now, func(j api.Job) bool { return j.Key == key }) {
		return
	}
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e := <-changes:
			if e.Job.Key == key && e.Job.State == api.StateReleased {
				return
			}
		case <-timeout:
			require.FailNow(t, "job is not released", key)
		}
	}
}

func TestAdmitAndRelease(t *testing.T) {
	p := executor.DefaultProfile()
	p.Environment = map[string]string{"SECRET": "x"}
	b := newBench(t, map[string]executor.Profile{"default": p})
	r := request(t, 1, self(t))
	a, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	key := r.Request.Job.Key()
	require.Equal(t, key, a.Job)
	require.Equal(t, "berth-"+key, a.Lease)
	require.Equal(t, "/berth/"+key, a.Cgroup)
	require.Equal(t, "docker.io/library/busybox:latest", a.Grant.Build.Name)
	require.Equal(t, []api.Endpoint{{Netns: "/run/netns/1-0", Address: netip.MustParseAddr("10.0.1.3")}}, a.Network.Services)
	require.DirExists(t, a.Dirs.Builds)
	require.DirExists(t, a.Dirs.Cache)
	info, err := os.Stat(a.Dirs.Job)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	require.Equal(t, []string{"builds " + key, "caches " + key, "cgroup /berth/" + key, "lease " + key, "names " + key, "network " + key}, b.left())

	again, err := b.Admission(key)
	require.NoError(t, err)
	require.Equal(t, a, again)
	require.NoError(t, b.Outcome(key, api.Outcome{Stage: "build_script", Status: "failed", ExitCode: 3}))
	require.Equal(t, 3, b.List()[0].Last.ExitCode)

	b.restart()
	again, err = b.Admission(key)
	require.NoError(t, err)
	require.Equal(t, a, again, "a restarted berthd knows all of it, the environment too")
	require.Equal(t, 3, b.List()[0].Last.ExitCode)

	require.NoError(t, os.WriteFile(filepath.Join(a.Dirs.Builds, "file"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(a.Dirs.Cache, "file"), nil, 0o600))
	require.NoError(t, b.Release(t.Context(), key))
	b.empty(t)
	require.FileExists(t, filepath.Join(a.Dirs.Cache, "file"), "the project keeps its cache")
	require.NoError(t, b.Release(t.Context(), key), "a second time")
	b.empty(t)
	_, err = b.Admission(key)
	require.True(t, errdefs.IsNotFound(err), err)
	require.True(t, errdefs.IsNotFound(b.Outcome(key, api.Outcome{})))
}

func TestAdmitRefuses(t *testing.T) {
	b := newBench(t, plain)
	for name, c := range map[string]struct {
		change func(*api.AdmitRequest)
		want   string
		build  bool
	}{
		"profile":     {func(r *api.AdmitRequest) { r.Profile = "gpu" }, `no profile "gpu"; it has: default`, true},
		"no image":    {func(r *api.AdmitRequest) { r.Request.Image.Name = "" }, "names no image", true},
		"gpus":        {func(r *api.AdmitRequest) { r.Request.Variables = map[string]string{gpu.CountVariable: "2"} }, "offers none", true},
		"dead runner": {func(r *api.AdmitRequest) { r.Runner.Start++ }, "has ended", false},
		"temp dir":    {func(r *api.AdmitRequest) { r.TempDir += "/x" }, "no such directory", false},
		"relative":    {func(r *api.AdmitRequest) { r.TempDir = "tmp" }, "absolute", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(t, 1, self(t))
			c.change(&r)
			_, err := b.Admit(t.Context(), r, silent)
			require.ErrorContains(t, err, c.want)
			var build *executor.BuildFailure
			require.Equal(t, c.build, errors.As(err, &build))
			b.empty(t)
		})
	}
}

func TestAdmitUndoes(t *testing.T) {
	broken := errors.New("broken")
	for _, step := range []string{"take", "hold", "create cgroup", "join", "put names"} {
		t.Run(step, func(t *testing.T) {
			b := newBench(t, limited(0))
			b.fail(step, broken)
			_, err := b.Admit(t.Context(), request(t, 1, self(t)), silent)
			require.ErrorIs(t, err, broken)
			b.empty(t)
			// Its place is free again.
			b.fail("", nil)
			_, err = b.Admit(t.Context(), request(t, 2, self(t)), silent)
			require.NoError(t, err)
		})
		t.Run(step+" after a cancel", func(t *testing.T) {
			b := newBench(t, plain)
			ctx, cancel := context.WithCancel(t.Context())
			b.on = func(s string) error {
				if s == step {
					cancel()
				}
				return nil
			}
			_, err := b.Admit(ctx, request(t, 1, self(t)), silent)
			if err == nil { // the last step to end does not mind
				require.NoError(t, b.Release(t.Context(), request(t, 1, self(t)).Request.Job.Key()))
			}
			b.empty(t)
		})
	}
	t.Run("panic", func(t *testing.T) {
		b := newBench(t, plain)
		b.on = func(s string) error {
			if s == "take" {
				panic("fault")
			}
			return nil
		}
		require.Panics(t, func() { _, _ = b.Admit(t.Context(), request(t, 1, self(t)), silent) })
		b.empty(t)
	})
	t.Run("directory", func(t *testing.T) {
		b := newBench(t, plain)
		require.NoError(t, os.RemoveAll(filepath.Join(b.root, "jobs")))
		_, err := b.Admit(t.Context(), request(t, 1, self(t)), silent)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoError(t, os.Mkdir(filepath.Join(b.root, "jobs"), 0o700))
		b.empty(t)
	})
}

func TestAdmitAgain(t *testing.T) {
	b := newBench(t, plain)
	first, kill := otherRunner(t)
	r := request(t, 1, first)
	_, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)

	_, err = b.Admit(t.Context(), r, silent)
	require.NoError(t, err, "the same runner may try again")
	require.Equal(t, 1, b.count("remove containers"))

	second := request(t, 1, self(t))
	_, err = b.Admit(t.Context(), second, silent)
	require.True(t, errdefs.IsAlreadyExists(err), err)
	require.ErrorContains(t, err, fmt.Sprintf("gitlab-runner process %d", first.PID))

	other := request(t, 1, self(t))
	other.Request.Job.Server = "https://gitlab.example.org"
	_, err = b.Admit(t.Context(), other, silent)
	require.NoError(t, err, "another GitLab counts for itself")

	kill()
	_, err = b.Admit(t.Context(), second, silent)
	require.NoError(t, err, "a dead runner's job makes room")
	require.Len(t, b.List(), 2)

	again := second
	again.TempDir = t.TempDir()
	require.NoError(t, os.RemoveAll(second.TempDir))
	_, err = b.Admit(t.Context(), again, silent)
	require.NoError(t, err, "its TempDir gone, the runner is through with the first")
}

func TestRunnerEnds(t *testing.T) {
	t.Run("of an admitted job", func(t *testing.T) {
		b := newBench(t, plain)
		p, kill := otherRunner(t)
		r := request(t, 1, p)
		_, err := b.Admit(t.Context(), r, silent)
		require.NoError(t, err)
		kill()
		begin := time.Now()
		b.gone(t, r.Request.Job.Key())
		require.Less(t, time.Since(begin), 2*time.Second, "at once, not at the next tick")
		b.empty(t)
	})
	t.Run("of a waiting job", func(t *testing.T) {
		b := newBench(t, limited(time.Hour))
		_, err := b.Admit(t.Context(), request(t, 1, self(t)), silent)
		require.NoError(t, err)
		p, kill := otherRunner(t)
		failed := make(chan error)
		go func() {
			_, err := b.Admit(context.Background(), request(t, 2, p), func(string) { kill() })
			failed <- err
		}()
		require.ErrorContains(t, <-failed, "process is gone")
		require.Len(t, b.List(), 1)
	})
	t.Run("with its directory alone", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, plain)
		r := request(t, 1, self(t))
		_, err := b.Admit(t.Context(), r, silent)
		require.NoError(t, err)
		require.NoError(t, os.RemoveAll(r.TempDir))
		b.gone(t, r.Request.Job.Key())
		b.empty(t)
	})
	t.Run("while berthd did not run", func(t *testing.T) {
		b := newBench(t, plain)
		p, kill := otherRunner(t)
		r, kept := request(t, 1, p), request(t, 2, self(t))
		for _, r := range []api.AdmitRequest{r, kept} {
			_, err := b.Admit(t.Context(), r, silent)
			require.NoError(t, err)
		}
		kill()
		b.restart()
		b.gone(t, r.Request.Job.Key())
		require.Equal(t, kept.Request.Job.Key(), b.List()[0].Key)
	})
}

func TestReleaseOnce(t *testing.T) {
	b := newBench(t, plain)
	r := request(t, 1, self(t))
	_, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	hang := make(chan struct{})
	b.on = func(s string) error {
		if s == "remove containers" {
			<-hang
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 10)
	for range cap(errs) - 1 {
		go func() { errs <- b.Release(context.Background(), r.Request.Job.Key()) }()
	}
	go func() { errs <- b.Release(ctx, r.Request.Job.Key()) }()
	require.Eventually(t, func() bool { return b.count("remove containers") > 0 }, 5*time.Second, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-errs, context.Canceled, "who goes away does not wait")
	_, err = b.Admission(r.Request.Job.Key())
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	close(hang)
	for range cap(errs) - 1 {
		require.NoError(t, <-errs)
	}
	b.empty(t)
}

func TestReleaseAgain(t *testing.T) {
	for _, step := range []string{"kill containers", "remove containers", "remove names", "release network", "remove cgroup"} {
		t.Run(step, func(t *testing.T) {
			b := newBench(t, limited(0))
			r := request(t, 1, self(t))
			_, err := b.Admit(t.Context(), r, silent)
			require.NoError(t, err)
			b.fail(step, errors.New("stuck"))
			key := r.Request.Job.Key()
			require.ErrorContains(t, b.Release(t.Context(), key), "stuck")
			require.Equal(t, api.StateReleasing, b.List()[0].State)
			next := request(t, 2, self(t))
			_, err = b.Admit(t.Context(), next, silent)
			if step == "kill containers" {
				require.True(t, errdefs.IsUnavailable(err), "what still runs keeps its berth: %v", err)
				require.ErrorContains(t, b.End(t.Context(), key), "stuck")
			} else {
				require.NoError(t, err)
				require.NoError(t, b.End(t.Context(), key))
				require.ErrorContains(t, b.Release(t.Context(), next.Request.Job.Key()), "stuck")
			}
			require.ErrorContains(t, b.Release(t.Context(), key), "stuck")

			b.fail("", nil)
			if step == "remove names" {
				b.restart() // a new berthd goes on with it
			} else {
				require.NoError(t, b.Sweep(t.Context()))
			}
			b.gone(t, r.Request.Job.Key())
			b.empty(t)
		})
	}
}

// Who ends a job waits for its processes alone, and so does who wants its
// place.
func TestEnd(t *testing.T) {
	b := newBench(t, limited(0))
	r := request(t, 1, self(t))
	_, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	hang := make(chan struct{})
	b.on = func(s string) error {
		if s == "remove containers" {
			<-hang
		}
		return nil
	}
	require.NoError(t, b.End(t.Context(), r.Request.Job.Key()))
	require.Equal(t, 1, b.count("kill containers"))
	require.Equal(t, api.StateReleasing, b.List()[0].State)
	next := request(t, 2, self(t))
	_, err = b.Admit(t.Context(), next, silent)
	require.NoError(t, err)
	close(hang)
	require.NoError(t, b.Release(t.Context(), r.Request.Job.Key()))
	require.NoError(t, b.Release(t.Context(), next.Request.Job.Key()))
	b.empty(t)
}

func TestReleaseRefusesKeys(t *testing.T) {
	b := newBench(t, plain)
	for _, key := range []string{"", "..", "j1", "j1-0123abcd/../x", "j1-0123abcdef", "J1-0123ABCD"} {
		require.True(t, errdefs.IsInvalidArgument(b.Release(t.Context(), key)), key)
	}
	require.Zero(t, b.count("remove containers"))
}

func TestSweepFindsOrphans(t *testing.T) {
	b := newBench(t, plain)
	r := request(t, 1, self(t))
	_, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	lost := "j99-0123abcd"
	require.NoError(t, fakeContainers{b.fakes}.Hold(t.Context(), lost))
	require.NoError(t, os.MkdirAll(filepath.Join(b.root, "jobs", "j98-0123abcd", "builds"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(b.root, "jobs", "lost+found"), 0o700))
	require.NoError(t, b.Sweep(t.Context()))
	b.gone(t, lost)
	b.gone(t, "j98-0123abcd")
	require.NoDirExists(t, filepath.Join(b.root, "jobs", "j98-0123abcd"))
	require.DirExists(t, filepath.Join(b.root, "jobs", "lost+found"), "not ours")
	require.NotContains(t, b.left(), "lease "+lost)
	require.Len(t, b.List(), 1)
}

func TestShutdownEndsWaiting(t *testing.T) {
	b := newBench(t, limited(time.Hour))
	_, err := b.Admit(t.Context(), request(t, 1, self(t)), silent)
	require.NoError(t, err)
	waiting, failed := make(chan struct{}), make(chan error)
	go func() {
		_, err := b.Admit(context.Background(), request(t, 2, self(t)), func(string) { close(waiting) })
		failed <- err
	}()
	<-waiting
	b.end(errShutdown)
	err = <-failed
	require.True(t, errdefs.IsUnavailable(err), err)
	b.restart()
	require.Len(t, b.List(), 1, "the admitted job goes on")
}

func TestWatchDropsTheSlow(t *testing.T) {
	b := newBench(t, plain)
	r := request(t, 1, self(t))
	_, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	now, changes, stop := b.Watch()
	defer stop()
	require.Equal(t, api.StateAdmitted, now[0].State)
	for i := range watchBuffer + 10 {
		require.NoError(t, b.Outcome(r.Request.Job.Key(), api.Outcome{ExitCode: i}))
	}
	seen := 0
	for e := range changes {
		require.Equal(t, seen, e.Job.Last.ExitCode)
		seen++
	}
	require.Equal(t, watchBuffer, seen)
}
