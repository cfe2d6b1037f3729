package gpu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/gputest"
	"gitlab.com/berth-ci/berth/node/api"
)

var anything = executor.GPUs{Models: []string{"*"}, Wait: executor.Duration(time.Hour)}

func identity(n int) executor.Identity {
	return executor.Identity{ID: int64(n), ProjectID: 1, Project: "group/project"}
}

// world is a keeper and what it keeps.
type world struct {
	*gpu.Keeper
	t      *testing.T
	driver *gputest.Driver
	dir    string
	boot   string
	log    *logrus.Logger
	cancel context.CancelFunc
}

// inWorld runs a test with a keeper of n GPUs, in time of its own.
func inWorld(t *testing.T, n int, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, driver: gputest.New(n), dir: t.TempDir(), boot: "this", log: logrus.New()}
		w.log.SetOutput(t.Output())
		w.start()
		synctest.Wait()
		defer func() { w.cancel(); synctest.Wait() }()
		test(t, w)
	})
}

func (w *world) start(adopt ...func(*gpu.Keeper)) {
	k, err := gpu.NewKeeper(w.driver, gpu.Settings{File: filepath.Join(w.dir, "quarantine.json"), CDI: filepath.Join(w.dir, "cdi"), Uses: filepath.Join(w.dir, "uses"), Root: w.dir, Boot: w.boot}, logrus.NewEntry(w.log))
	require.NoError(w.t, err)
	for _, f := range adopt {
		f(k)
	}
	w.Keeper = k
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	go k.Run(ctx)
}

func (w *world) restart(adopt ...func(*gpu.Keeper)) {
	w.cancel()
	synctest.Wait()
	w.start(adopt...)
	synctest.Wait()
}

func (w *world) acquire(job, count int) (*api.GPUs, error) {
	return w.Acquire(w.t.Context(), identity(job), "default", anything, map[string]string{gpu.CountVariable: fmt.Sprint(count)}, func(string) {})
}

func (w *world) state(n int) api.GPU {
	for _, g := range w.List().GPUs {
		if g.UUID == gputest.UUID(n) {
			return g
		}
	}
	return api.GPU{State: "not listed"}
}

func percent(n int) *int           { return &n }
func millijoules(n uint64) *uint64 { return &n }

func TestKeeperWithoutDriver(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		w.driver.Fail(fmt.Errorf("no NVIDIA driver: libnvidia-ml.so.1 is not installed: %w", errdefs.ErrNotFound))
		said := logrustest.NewLocal(w.log)
		w.restart()
		time.Sleep(time.Hour)
		var lines []string
		for _, e := range said.AllEntries() {
			lines = append(lines, e.Message)
		}
		require.Equal(t, []string{"this node offers no GPUs"}, lines, "once")
		_, err := w.acquire(1, 1)
		var build *executor.BuildFailure
		require.True(t, errors.As(err, &build), "%v", err)
		require.ErrorContains(t, err, "the job asks for GPUs (1 × GPU), but this node offers none: no NVIDIA driver: libnvidia-ml.so.1 is not installed")
		require.Contains(t, w.List().Reason, "libnvidia-ml")
		g, err := w.Acquire(t.Context(), identity(1), "default", anything, nil, nil)
		require.NoError(t, err)
		require.Nil(t, g)

		// A driver that is installed later is found.
		w.driver.Fail(nil)
		w.driver.Change(func(i *gpu.Inventory) { i.Devices = gpuOf(1) })
		time.Sleep(2 * time.Minute)
		_, err = w.acquire(2, 1)
		require.NoError(t, err)
	})
}

// TestKeeperWithholds: who asks for none is kept from what there is, also
// while the driver does not say what that is.
func TestKeeperWithholds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes device nodes")
	}
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.driver.Fail(fmt.Errorf("the driver hangs: %w", errdefs.ErrUnavailable))
		w.restart()
		require.NoError(t, os.MkdirAll(filepath.Join(w.dir, "dev/nvidia-caps"), 0o755))
		for path, number := range map[string]uint64{
			"nvidia0": unix.Mkdev(195, 0), "nvidia11": unix.Mkdev(195, 11), "nvidiactl": unix.Mkdev(195, 255),
			"nvidia-caps/nvidia-cap3": unix.Mkdev(236, 3),
		} {
			require.NoError(t, unix.Mknod(filepath.Join(w.dir, "dev", path), unix.S_IFCHR|0o600, int(number)))
		}
		require.NoError(t, os.WriteFile(filepath.Join(w.dir, "dev/nvidia1"), nil, 0o600))
		g, err := w.Acquire(t.Context(), identity(1), "default", anything, nil, nil)
		require.NoError(t, err)
		var withheld []string
		for _, d := range g.Withheld {
			withheld = append(withheld, fmt.Sprintf("%s %d:%d", d.Type, d.Major, d.Minor))
		}
		require.ElementsMatch(t, []string{"c 195:0", "c 195:11", "c 236:3"}, withheld)
		require.Empty(t, g.Devices)
	})
}

func gpuOf(n int) (devices []gpu.Device) {
	for g := range n {
		devices = append(devices, gpu.Device{UUID: gputest.UUID(g), GPU: gputest.UUID(g), Index: g, Model: "NVIDIA A100-SXM4-40GB", Memory: 40 << 30})
	}
	return devices
}

func TestKeeperWithABrokenDriver(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.driver.Fail(fmt.Errorf("the driver has not answered: %w", errdefs.ErrUnavailable))
		time.Sleep(time.Minute)
		_, err := w.acquire(1, 1)
		require.True(t, errdefs.IsUnavailable(err), "the runner may try again: %v", err)
		w.driver.Fail(nil)
		time.Sleep(time.Minute)
		_, err = w.acquire(1, 1)
		require.NoError(t, err)
	})
}

func TestKeeperReleasesOnce(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		g, err := w.acquire(1, 2)
		require.NoError(t, err)
		require.Equal(t, []string{"GPU-0", "GPU-1"}, g.Devices)
		require.Equal(t, []string{"CUDA_VISIBLE_DEVICES=0,1"}, g.Env)
		require.FileExists(t, filepath.Join(w.dir, "cdi", identity(1).Key()+".json"))
		require.Equal(t, api.GPULeased, w.state(0).State)
		require.Equal(t, "group/project", w.state(0).Holder.Project)
		next := make(chan error, 1)
		go func() { _, err := w.acquire(2, 1); next <- err }()
		synctest.Wait()
		require.NoError(t, w.Release(t.Context(), identity(1).Key()))
		require.NoError(t, <-next)
		require.NoError(t, w.Release(t.Context(), identity(1).Key()), "it takes nothing from the next")
		require.Equal(t, identity(2).Key(), w.state(0).Holder.Job)
		require.NoFileExists(t, filepath.Join(w.dir, "cdi", identity(1).Key()+".json"))
		require.NoError(t, w.Release(t.Context(), "j99-01234567"), "who never had any")
	})
}

// TestKeeperAfterAJob: what a job leaves on a GPU keeps the next away from it,
// for as long as it is there.
func TestKeeperAfterAJob(t *testing.T) {
	self := gpu.Process{PID: os.Getpid()}
	for name, c := range map[string]struct {
		left   gpu.Reading
		says   string
		cause  string
		mended bool
	}{
		"a process":        {gpu.Reading{Processes: []gpu.Process{self}}, fmt.Sprintf("%d (gpu.test)", os.Getpid()), gpu.CauseLeftover, true},
		"memory":           {gpu.Reading{MemoryUsed: 10 << 30}, "10GiB of its memory are in use", gpu.CauseLeftover, true},
		"an error":         {gpu.Reading{Uncorrected: 2}, "2 uncorrected memory errors", gpu.CauseMemory, true},
		"a pending remap":  {gpu.Reading{RemapPending: true}, "next reset", gpu.CauseMemory, true},
		"a failed remap":   {gpu.Reading{RemapFailed: true}, "replaced", gpu.CauseMemory, true},
		"a lost device":    {gpu.Reading{Lost: "it does not answer"}, "does not answer", gpu.CauseLost, true},
		"an unknown state": {gpu.Reading{Unread: []string{"processes: ERROR_UNKNOWN"}}, "processes: ERROR_UNKNOWN", gpu.CauseLost, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				_, err := w.acquire(1, 1)
				require.NoError(t, err)
				w.driver.Set(gputest.UUID(0), c.left)
				begin := time.Now()
				require.NoError(t, w.Release(t.Context(), identity(1).Key()))
				require.Equal(t, 10*time.Second, time.Since(begin).Round(time.Second), "it has time to come to rest")
				g := w.state(0)
				require.Equal(t, api.GPUQuarantined, g.State)
				require.Equal(t, c.cause, g.Quarantine.Cause)
				require.Contains(t, g.Quarantine.Reason, c.says)

				w.restart() // which forgets nothing
				time.Sleep(time.Hour)
				require.Equal(t, api.GPUQuarantined, w.state(0).State)
				w.driver.Set(gputest.UUID(0), gpu.Reading{})
				time.Sleep(time.Minute)
				require.Equal(t, c.mended, w.state(0).State == api.GPUFree)
			})
		})
	}
}

func TestKeeperWaitsForRest(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		_, err := w.acquire(1, 1)
		require.NoError(t, err)
		w.driver.Set(gputest.UUID(0), gpu.Reading{MemoryUsed: 30 << 30})
		go func() {
			time.Sleep(3 * time.Second)
			w.driver.Set(gputest.UUID(0), gpu.Reading{MemoryUsed: 4 << 20})
		}()
		require.NoError(t, w.Release(t.Context(), identity(1).Key()))
		require.Equal(t, api.GPUFree, w.state(0).State)
	})
}

func TestKeeperWithoutAnswerAfterAJob(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		_, err := w.acquire(1, 1)
		require.NoError(t, err)
		w.driver.Fail(fmt.Errorf("the driver hangs: %w", errdefs.ErrUnavailable))
		require.NoError(t, w.Release(t.Context(), identity(1).Key()))
		require.Equal(t, gpu.CauseLost, w.state(0).Quarantine.Cause)
		w.driver.Fail(nil)
		time.Sleep(time.Minute)
		require.Equal(t, api.GPUFree, w.state(0).State)
	})
}

// TestKeeperFindsStrangers: nobody is given a GPU that somebody else uses.
func TestKeeperFindsStrangers(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.driver.Set(gputest.UUID(0), gpu.Reading{Processes: []gpu.Process{{PID: 1}}})
		time.Sleep(time.Minute)
		require.Equal(t, gpu.CauseLeftover, w.state(0).Quarantine.Cause)
		next := make(chan error, 1)
		go func() { _, err := w.acquire(1, 1); next <- err }()
		time.Sleep(time.Minute)
		require.Empty(t, next)
		w.driver.Set(gputest.UUID(0), gpu.Reading{})
		require.NoError(t, <-next)

		// The same with a lease is the job's own.
		w.driver.Set(gputest.UUID(0), gpu.Reading{Processes: []gpu.Process{{PID: 1}}})
		time.Sleep(time.Minute)
		require.Nil(t, w.state(0).Quarantine)
	})
}

func TestKeeperReactsToXIDs(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.driver.Change(func(i *gpu.Inventory) {
			parent := i.Devices[2]
			i.Devices = i.Devices[:2]
			for m := range 2 {
				d := parent
				d.UUID, d.MIG, d.GPUInstance = fmt.Sprintf("MIG-%d", m), "1g.5gb", m+1
				i.Devices = append(i.Devices, d)
			}
		})
		time.Sleep(time.Minute)
		_, err := w.acquire(1, 1)
		require.NoError(t, err)
		w.driver.Report(gpu.Event{GPU: "GPU-0", XID: 31, GPUInstance: -1})
		w.driver.Report(gpu.Event{GPU: "GPU-1", XID: 79, GPUInstance: -1})
		w.driver.Report(gpu.Event{GPU: "GPU-2", XID: 94, GPUInstance: 2, ComputeInstance: 0})
		time.Sleep(time.Minute)
		shelved := map[string]string{}
		for _, g := range w.List().GPUs {
			if g.Quarantine != nil {
				shelved[g.UUID] = g.Quarantine.Reason
			}
		}
		require.Len(t, shelved, 2)
		require.Contains(t, shelved["GPU-1"], "XID 79")
		require.Contains(t, shelved["MIG-1"], "XID 94")
		use, err := w.Use(t.Context(), identity(1).Key())
		require.NoError(t, err)
		require.Equal(t, []uint64{31}, use.Devices[0].XIDs, "the program's own fault is told to its job")

		w.restart()
		time.Sleep(time.Hour)
		require.NotNil(t, w.state(1).Quarantine, "that nothing shows does not mean that it is well")
		w.boot = "next"
		w.restart()
		time.Sleep(time.Minute)
		require.Nil(t, w.state(1).Quarantine)
	})
}

func TestKeeperObeysOperators(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		require.NoError(t, w.Quarantine(gputest.UUID(0), "noisy fan"))
		require.Equal(t, "noisy fan", w.state(0).Quarantine.Reason)
		w.boot = "next"
		w.restart()
		time.Sleep(time.Hour)
		require.Equal(t, gpu.CauseOperator, w.state(0).Quarantine.Cause, "nothing but an operator ends it")
		require.NoError(t, w.Unquarantine(gputest.UUID(0)))
		require.Equal(t, api.GPUFree, w.state(0).State)
		require.True(t, errdefs.IsNotFound(w.Unquarantine(gputest.UUID(0))))
		require.True(t, errdefs.IsNotFound(w.Quarantine("GPU-x", "")))

		// What an operator finds in order is in order.
		w.driver.Set(gputest.UUID(0), gpu.Reading{MemoryUsed: 5 << 30})
		time.Sleep(time.Minute)
		require.Equal(t, gpu.CauseLeftover, w.state(0).Quarantine.Cause)
		require.NoError(t, w.Unquarantine(gputest.UUID(0)))
		time.Sleep(time.Hour)
		require.Nil(t, w.state(0).Quarantine)

		// One that is not well is soon taken away again.
		w.driver.Set(gputest.UUID(0), gpu.Reading{RemapFailed: true})
		time.Sleep(time.Minute)
		require.NoError(t, w.Unquarantine(gputest.UUID(0)))
		time.Sleep(time.Second)
		require.Equal(t, gpu.CauseMemory, w.state(0).Quarantine.Cause)
	})
}

// TestKeeperReconciles: a new berthd knows who has what.
func TestKeeperReconciles(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		g, err := w.acquire(1, 1)
		require.NoError(t, err)
		w.restart(func(k *gpu.Keeper) {
			require.NoError(t, k.Adopt(identity(1), "default", time.Now(), g))
			require.NoError(t, k.Adopt(identity(7), "default", time.Now(), nil))
			require.True(t, errdefs.IsAlreadyExists(k.Adopt(identity(2), "default", time.Now(), g)))
		})
		other, err := w.acquire(3, 1)
		require.NoError(t, err)
		require.NotEqual(t, g.Devices, other.Devices)
		require.FileExists(t, filepath.Join(w.dir, "cdi", identity(1).Key()+".json"))
		use, err := w.Use(t.Context(), identity(1).Key())
		require.NoError(t, err)
		require.Equal(t, "NVIDIA A100-SXM4-40GB", use.Devices[0].Name)

		// Without that, a process that lives on still keeps the GPU from others.
		w.driver.Set(g.Devices[0], gpu.Reading{Processes: []gpu.Process{{PID: 1}}})
		w.restart()
		require.Equal(t, gpu.CauseLeftover, w.state(0).Quarantine.Cause)
		left, err := os.ReadDir(filepath.Join(w.dir, "cdi"))
		require.NoError(t, err)
		require.Empty(t, left)
	})
}

func TestKeeperTellsUse(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		g, err := w.acquire(1, 2)
		require.NoError(t, err)
		time.Sleep(500 * time.Millisecond) // to be looked at between the changes
		for n := range 10 {
			w.driver.Set(g.Devices[0], gpu.Reading{Utilisation: percent(n * 10), MemoryUsed: executor.Bytes(n) << 30, Energy: millijoules(uint64(5000 + n*1000)), Throttled: []string{"too hot"}})
			time.Sleep(time.Second)
		}
		use, err := w.Use(t.Context(), identity(1).Key())
		require.NoError(t, err)
		busy, idle := use.Devices[0], use.Devices[1]
		require.InDelta(t, 45, *busy.Mean, 10)
		require.Equal(t, 90, *busy.Peak)
		require.EqualValues(t, 9<<30, busy.MemoryPeak)
		require.InDelta(t, 9, *busy.Energy, 1)
		require.True(t, busy.Used)
		require.Equal(t, []string{"too hot"}, busy.Throttled)
		require.False(t, idle.Used)
		require.Nil(t, idle.Mean)
	})
}

// TestKeeperRemembersUse: a berthd that is killed takes nothing with it but
// what it had no time to write down, and the job hears for how long nobody
// looked.
func TestKeeperRemembersUse(t *testing.T) {
	for name, killed := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				g, err := w.acquire(1, 1)
				require.NoError(t, err)
				since := time.Now()
				w.driver.Set(g.Devices[0], gpu.Reading{Utilisation: percent(80), MemoryUsed: 9 << 30, Energy: millijoules(1000)})
				time.Sleep(time.Minute)
				w.driver.Report(gpu.Event{GPU: "GPU-0", XID: 13, GPUInstance: -1})
				synctest.Wait()
				file := filepath.Join(w.dir, "uses", identity(1).Key()+".json")
				at, err := os.ReadFile(file)
				require.NoError(t, err, "as it is at any moment")
				w.cancel()
				synctest.Wait()
				if killed {
					require.NoError(t, os.WriteFile(file, at, 0o600))
				}
				w.driver.Set(g.Devices[0], gpu.Reading{Utilisation: percent(100), MemoryUsed: 30 << 30, Energy: millijoules(500_000)})
				time.Sleep(20 * time.Second) // nobody looks
				w.driver.Set(g.Devices[0], gpu.Reading{Utilisation: percent(0), Energy: millijoules(501_000)})
				w.start(func(k *gpu.Keeper) { require.NoError(t, k.Adopt(identity(1), "default", since, g)) })
				time.Sleep(time.Minute)
				use, err := w.Use(t.Context(), identity(1).Key())
				require.NoError(t, err)
				d := use.Devices[0]
				require.True(t, since.Equal(use.Since), "%v", use.Since)
				require.InDelta(t, 40, *d.Mean, 5)
				require.Equal(t, 80, *d.Peak)
				require.EqualValues(t, 9<<30, d.MemoryPeak)
				require.InDelta(t, 500, *d.Energy, 0.1, "the driver has counted on")
				require.Equal(t, []uint64{13}, d.XIDs)
				require.InDelta(t, 20, use.Unwatched.Seconds(), 2)
				require.NoError(t, w.Release(t.Context(), identity(1).Key()))
				require.NoFileExists(t, file)
			})
		})
	}
	t.Run("the file is lost", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			g, err := w.acquire(1, 1)
			require.NoError(t, err)
			since := time.Now()
			time.Sleep(time.Minute)
			w.cancel()
			synctest.Wait()
			file := filepath.Join(w.dir, "uses", identity(1).Key()+".json")
			require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
			w.start(func(k *gpu.Keeper) { require.NoError(t, k.Adopt(identity(1), "default", since, g)) })
			time.Sleep(time.Minute)
			use, err := w.Use(t.Context(), identity(1).Key())
			require.NoError(t, err)
			require.InDelta(t, 60, use.Unwatched.Seconds(), 2, "all that was before")
			require.NoError(t, os.WriteFile(filepath.Join(w.dir, "uses", "j9-01234567.json"), nil, 0o600))
			w.restart()
			left, err := os.ReadDir(filepath.Join(w.dir, "uses"))
			require.NoError(t, err)
			require.Empty(t, left, "of jobs that are gone")
		})
	})
	t.Run("a driver that hangs", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			_, err := w.acquire(1, 1)
			require.NoError(t, err)
			w.driver.Fail(fmt.Errorf("the driver hangs: %w", errdefs.ErrUnavailable))
			time.Sleep(30 * time.Second)
			w.driver.Fail(nil)
			time.Sleep(10 * time.Second)
			use, err := w.Use(t.Context(), identity(1).Key())
			require.NoError(t, err)
			require.InDelta(t, 30, use.Unwatched.Seconds(), 2)
		})
	})
}

func TestKeeperHotRemoval(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		_, err := w.acquire(1, 1)
		require.NoError(t, err)
		w.driver.Change(func(i *gpu.Inventory) { i.Devices = i.Devices[1:] })
		w.driver.Set(gputest.UUID(0), gpu.Reading{Lost: "it cannot be found"})
		time.Sleep(time.Minute)
		require.Equal(t, api.GPUGone, w.state(0).State)
		use, err := w.Use(t.Context(), identity(1).Key())
		require.NoError(t, err)
		require.Equal(t, "it cannot be found", use.Devices[0].Lost, "the job hears of it")
		require.NoError(t, w.Release(t.Context(), identity(1).Key()))
		require.Equal(t, api.GPUGone, w.state(0).State, "its quarantine waits for it to come back")
		w.driver.Change(func(i *gpu.Inventory) { i.Devices = gpuOf(2) })
		w.driver.Set(gputest.UUID(0), gpu.Reading{})
		time.Sleep(2 * time.Minute)
		require.Equal(t, api.GPUFree, w.state(0).State)
	})
}

// TestKeeperDriverReload: a driver that is unloaded and loaded again takes no
// lease away, and offers what it then has.
func TestKeeperDriverReload(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		g, err := w.acquire(1, 1)
		require.NoError(t, err)
		w.driver.Fail(fmt.Errorf("no NVIDIA driver: its kernel module is not loaded: %w", errdefs.ErrNotFound))
		time.Sleep(2 * time.Minute)
		require.Contains(t, w.List().Reason, "kernel module is not loaded")
		var build *executor.BuildFailure
		_, err = w.acquire(2, 1)
		require.True(t, errors.As(err, &build), "%v", err)
		require.Equal(t, identity(1).Key(), w.state(0).Holder.Job)

		w.driver.Change(func(i *gpu.Inventory) { i.Driver = "560.35.03" })
		w.driver.Fail(nil)
		time.Sleep(2 * time.Minute)
		require.Empty(t, w.List().Reason)
		require.Equal(t, "560.35.03", w.List().Driver)
		require.Equal(t, api.GPULeased, w.state(0).State)
		other, err := w.acquire(3, 1)
		require.NoError(t, err)
		require.NotEqual(t, g.Devices, other.Devices, "it is still the first job's")
		next := make(chan error, 1)
		go func() { _, err := w.acquire(4, 1); next <- err }()
		synctest.Wait()
		require.Empty(t, next)
		require.NoError(t, w.Release(t.Context(), identity(1).Key()))
		require.NoError(t, <-next)
	})
}

func TestWithin(t *testing.T) {
	lease := []string{"GPU-a", "GPU-b"}
	for name, c := range map[string]struct {
		count int
		names []string
		want  []string
		says  string
	}{
		"all":                {-1, nil, lease, ""},
		"one":                {1, nil, lease[:1], ""},
		"too many":           {3, nil, nil, "3 GPUs: the job has 2"},
		"by UUID":            {0, []string{"GPU-b"}, lease[1:], ""},
		"by place":           {0, []string{"1"}, lease[1:], ""},
		"by CDI name":        {0, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=GPU-a"}, lease[:1], ""},
		"all by CDI name":    {0, []string{"nvidia.com/gpu=all"}, lease, ""},
		"another's":          {0, []string{"GPU-c"}, nil, `GPU "GPU-c" is not one of the job's: it has GPU-a, GPU-b`},
		"out of the lease":   {0, []string{"2"}, nil, "is not one of the job's"},
		"a negative place":   {0, []string{"-1"}, nil, "is not one of the job's"},
		"another vendor's":   {0, []string{"evil.com/gpu=0"}, nil, "is not one of the job's"},
		"one of our own":     {0, []string{gpu.CDIName("j1-01234567", "GPU-a")}, nil, "is not one of the job's"},
		"management's":       {0, []string{"management.nvidia.com/gpu=all"}, nil, "is not one of the job's"},
		"a name in a prefix": {0, []string{"nvidia.com/gpu=nvidia.com/gpu=0"}, nil, "is not one of the job's"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := gpu.Within(lease, c.count, c.names)
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			slices.Sort(got)
			require.Equal(t, c.want, got)
		})
	}
	_, err := gpu.Within(nil, -1, nil)
	require.NoError(t, err)
	_, err = gpu.Within(nil, 1, nil)
	require.ErrorContains(t, err, "BERTH_GPU_COUNT")
}
