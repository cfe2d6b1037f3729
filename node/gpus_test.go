package node

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/gputest"
	"gitlab.com/berth-ci/berth/node/api"
)

// withGPUs asks for GPUs, too.
func withGPUs(r api.AdmitRequest, count int) api.AdmitRequest {
	r.Request.Variables = map[string]string{gpu.CountVariable: fmt.Sprint(count)}
	return r
}

// leased counts the GPUs that jobs have.
func (b *bench) leased() (n int) {
	for _, g := range b.keeper.List().GPUs {
		if g.Holder != nil {
			n++
		}
	}
	return n
}

func newGPUBench(t testing.TB, n int, s executor.GPUs) *bench {
	p := executor.DefaultProfile()
	p.GPU = s
	return newBenchWith(t, t.TempDir(), map[string]executor.Profile{"default": p}, gputest.New(n))
}

func TestAdmitWithGPUs(t *testing.T) {
	b := newGPUBench(t, 2, executor.DefaultProfile().GPU)
	r := withGPUs(request(t, 1, self(t)), 2)
	a, err := b.Admit(t.Context(), r, silent)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"GPU-0", "GPU-1"}, a.GPUs.Devices)
	require.Contains(t, a.GPUs.Env, "CUDA_VISIBLE_DEVICES=0,1")

	// Others wait, also when berthd was killed meanwhile.
	b.restart()
	again, err := b.Admission(a.Job)
	require.NoError(t, err)
	require.Equal(t, a, again)
	require.Equal(t, 2, b.leased())
	lines := make(chan string, 10)
	next := make(chan error, 1)
	go func() {
		_, err := b.Admit(context.Background(), withGPUs(request(t, 2, self(t)), 1), func(s string) { lines <- s })
		next <- err
	}()
	require.Equal(t, "Waiting for GPUs: place 1 of 1 for 1 × GPU; 0 of 2 are free: job 1 (group/project) has 2", <-lines)
	require.NoError(t, b.Release(t.Context(), a.Job))
	require.NoError(t, <-next)
	require.NoError(t, b.Release(t.Context(), a.Job), "a second time")
	require.Equal(t, 1, b.leased(), "which takes nothing from the next")
	require.NoError(t, b.Release(t.Context(), request(t, 2, self(t)).Request.Job.Key()))
	b.empty(t)
	require.Zero(t, b.leased())
}

func TestAdmitRefusesGPUs(t *testing.T) {
	b := newGPUBench(t, 2, executor.GPUs{Models: []string{"a100"}, PerJob: 1, Wait: executor.Duration(time.Minute)})
	for want, variables := range map[string]map[string]string{
		`2 is more than profile "default" allows a job`:     {gpu.CountVariable: "2"},
		`BERTH_GPU_COUNT: count "all"`:                      {gpu.CountVariable: "all"},
		"the job asks for 1 × h100, but this node has 2 × ": {gpu.ModelVariable: "h100"},
		"BERTH_GPU_CAPABILITIES":                            {gpu.CountVariable: "1", gpu.CapabilitiesVariable: "root"},
	} {
		r := request(t, 1, self(t))
		r.Request.Variables = variables
		_, err := b.Admit(t.Context(), r, silent)
		var build *executor.BuildFailure
		require.True(t, errors.As(err, &build), "%v", err)
		require.ErrorContains(t, err, want)
		b.empty(t)
		require.Zero(t, b.leased())
	}
}

// TestAdmitUndoesGPUs: whatever fails after, the lease ends once.
func TestAdmitUndoesGPUs(t *testing.T) {
	broken := errors.New("broken")
	for _, step := range []string{"take", "hold", "create cgroup", "withhold devices", "join", "put names", "admit to caches"} {
		t.Run(step, func(t *testing.T) {
			b := newGPUBench(t, 1, executor.DefaultProfile().GPU)
			b.fail(step, broken)
			_, err := b.Admit(t.Context(), withGPUs(request(t, 1, self(t)), 1), silent)
			require.ErrorIs(t, err, broken)
			b.empty(t)
			require.Zero(t, b.leased())
			b.fail("", nil)
			_, err = b.Admit(t.Context(), withGPUs(request(t, 2, self(t)), 1), silent)
			require.NoError(t, err)
		})
	}
	t.Run("a cancelled wait", func(t *testing.T) {
		b := newGPUBench(t, 1, executor.DefaultProfile().GPU)
		_, err := b.Admit(t.Context(), withGPUs(request(t, 1, self(t)), 1), silent)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		_, err = b.Admit(ctx, withGPUs(request(t, 2, self(t)), 1), func(string) { cancel() })
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, b.leased())
	})
}

// TestRunnerDiesWithGPUs: a job whose runner is gone gives its GPUs back,
// though berthd did not run when that happened.
func TestRunnerDiesWithGPUs(t *testing.T) {
	b := newGPUBench(t, 1, executor.DefaultProfile().GPU)
	runner, kill := otherRunner(t)
	a, err := b.Admit(t.Context(), withGPUs(request(t, 1, runner), 1), silent)
	require.NoError(t, err)
	kill()
	b.restart()
	b.gone(t, a.Job)
	b.empty(t)
	require.Zero(t, b.leased())
}

func TestGPUCalls(t *testing.T) {
	b := newGPUBench(t, 1, executor.DefaultProfile().GPU)
	client, _ := serve(t, b)
	a, err := client.Admit(t.Context(), withGPUs(request(t, 1, self(t)), 1), silent)
	require.NoError(t, err)
	list, err := client.GPUs(t.Context())
	require.NoError(t, err)
	require.Equal(t, "550.54.15", list.Driver)
	require.Equal(t, a.Job, list.GPUs[0].Holder.Job)
	use, err := client.GPUUse(t.Context(), a.Job)
	require.NoError(t, err)
	require.Equal(t, "GPU-0", use.Devices[0].UUID)
	_, err = client.GPUUse(t.Context(), "j99-01234567")
	require.True(t, errdefs.IsNotFound(err))
	require.NoError(t, client.QuarantineGPU(t.Context(), "GPU-0", "smells"))
	list, err = client.GPUs(t.Context())
	require.NoError(t, err)
	require.Equal(t, api.GPULeased, list.GPUs[0].State)
	require.Equal(t, "smells", list.GPUs[0].Quarantine.Reason)
	require.NoError(t, client.ReleaseGPU(t.Context(), "GPU-0"))
	require.True(t, errdefs.IsNotFound(client.ReleaseGPU(t.Context(), "GPU-0")))
	require.True(t, errdefs.IsNotFound(client.QuarantineGPU(t.Context(), "../x", "")))
}
