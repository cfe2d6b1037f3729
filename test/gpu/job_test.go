//go:build cgo

package gpu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/gpu/nvml/nvmltest"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// look has a script tell what the kernel says to opening a device: nothing is
// behind those that it allows, and it answers so.
const look = `look() { echo "$1: $(cat "$1" 2>&1 | sed 's/.*: //')"; }`

// mknod looks at a device by its number, whatever name there is.
const mknod = `number() { said=$(mknod /tmp/node.$1.$2 c $1 $2 2>&1 && cat /tmp/node.$1.$2 2>&1 || true); echo "$1 $2: ${said##*: }"; }`

const (
	allowed = "No such device or address"
	refused = "Operation not permitted"
)

func TestGPU(t *testing.T) {
	j := start(t, gitlab.JobSpec{
		Variables: variables("BERTH_GPU_COUNT", "1", "BERTH_GPU_MODEL", "a100", "NVIDIA_VISIBLE_DEVICES", "all"),
		Image:     gitlab.Image{Name: registry.Image(images.Git)},
		Script: []string{
			look, mknod,
			"for d in /dev/nvidia* /dev/nvidia-caps/*; do if [ -c $d ]; then look $d; fi; done",
			"for n in 0 1 2 3 255; do number 195 $n; done",
			"number 236 3",
			"tr '\\0' '\\n' </proc/1/environ | grep -E '^(CUDA|NVIDIA)_'",
			"ls /usr/lib/x86_64-linux-gnu /usr/bin | grep -E 'nvidia|cuda|GLX' | sed 's/^/file /'",
			"readlink /usr/lib/x86_64-linux-gnu/libcuda.so",
			"ls /etc/ld.so.cache",
			"cat /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15",
			"echo changed >/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15 || echo read-only",
		},
	})
	require.Equal(t, gitlab.Success, end(t, j))
	log := j.Log()
	m := regexp.MustCompile(`\n/dev/nvidia(\d): `+allowed).FindAllStringSubmatch(log, -1)
	require.Len(t, m, 1, "one GPU, and it is allowed")
	mine := m[0][1]
	for n := range gpus {
		want := refused
		if fmt.Sprint(n) == mine {
			want = allowed
		}
		require.Contains(t, log, fmt.Sprintf("\n195 %d: %s\n", n, want))
	}
	require.Contains(t, log, "\n195 255: "+allowed, "nvidiactl")
	require.Contains(t, log, "\n236 3: "+refused, "an instance of another GPU")
	require.Contains(t, log, "\n/dev/nvidia-uvm: "+allowed)
	require.NotContains(t, log, "/dev/nvidia-modeset")
	require.Contains(t, log, "\nNVIDIA_VISIBLE_DEVICES=void\n")
	require.NotContains(t, log, "\nNVIDIA_VISIBLE_DEVICES=all\n")
	require.Contains(t, log, "\nCUDA_VISIBLE_DEVICES=0\n")
	require.Contains(t, log, "\nof the driver\n")
	require.Contains(t, log, "\nread-only\n")
	require.Contains(t, log, "\nfile nvidia-smi\n")
	require.NotContains(t, log, "file libnvidia-encode", "neither video")
	require.NotContains(t, log, "file libGLX", "nor graphics unless asked for")
	require.Contains(t, log, "\nlibcuda.so.1\n", "made by a hook")
	require.Contains(t, log, "\n/etc/ld.so.cache\n", "made by another, of an image without one")
	require.Regexp(t, `\nGPU .*A100-SXM4-40GB \(GPU-00000000-0000-0000-0000-00000000000\d\): 0% busy on average, 0% at most; 0B of 40GiB memory at most; 0 J\n`, log)
	require.Contains(t, log, "\nHINT: the job asked for 1 and used 0")
	require.Equal(t, 1, strings.Count(log, "busy on average"), "once")
}

func TestInstance(t *testing.T) {
	j := start(t, gitlab.JobSpec{
		Variables: variables("BERTH_GPU_MIG_PROFILE", "1g.5gb"),
		Script: []string{
			look, mknod,
			"for d in /dev/nvidia? /dev/nvidia-caps/*; do look $d; done",
			"for n in 1 2 3 4 5 6; do number 236 $n; done", "number 195 0",
			"tr '\\0' '\\n' </proc/1/environ | grep CUDA_VISIBLE",
		},
	})
	require.Equal(t, gitlab.Success, end(t, j))
	log := j.Log()
	require.Contains(t, log, "\n/dev/nvidia3: "+allowed)
	require.NotContains(t, log, "\n/dev/nvidia0:")
	require.Regexp(t, `\nCUDA_VISIBLE_DEVICES=MIG-00000000-0000-0000-0003-00000000000[01]\n`, log)
	mine := 3 // of the first instance; 1 and 2 are for administration
	if strings.Contains(log, "CUDA_VISIBLE_DEVICES="+nvmltest.InstanceUUID(3, 1)) {
		mine = 5
	}
	for n := 1; n <= 6; n++ {
		want := refused
		if n == mine || n == mine+1 {
			want = allowed
		}
		require.Contains(t, log, fmt.Sprintf("\n236 %d: %s\n", n, want))
	}
	require.Contains(t, log, "\n195 0: "+refused)
}

// TestWithout: a job that asks for none has none, whatever its image asks for.
func TestWithout(t *testing.T) {
	j := start(t, gitlab.JobSpec{
		Variables: variables("NVIDIA_VISIBLE_DEVICES", "all"),
		Script: []string{
			mknod, "ls /dev | grep nvidia || echo none", "for n in 0 1 2 3 255; do number 195 $n; done",
			"tr '\\0' '\\n' </proc/1/environ | grep NVIDIA",
		},
	})
	require.Equal(t, gitlab.Success, end(t, j))
	require.Contains(t, j.Log(), "\nnone\n")
	require.Contains(t, j.Log(), "\nNVIDIA_VISIBLE_DEVICES=void\n")
	require.Equal(t, 5, strings.Count(j.Log(), ": "+refused), "%s", j.Log())
	require.NotContains(t, j.Log(), "busy on average")
}

// TestPrivileged: what is privileged has all devices of the node but others'
// GPUs.
func TestPrivileged(t *testing.T) {
	j := start(t, gitlab.JobSpec{
		Tags: []string{"privileged"}, Variables: variables("BERTH_GPU_COUNT", "1"),
		Script: []string{mknod, "for n in 0 1 2 3; do number 195 $n; done"},
	})
	require.Equal(t, gitlab.Success, end(t, j))
	require.Equal(t, 1, strings.Count(j.Log(), ": "+allowed), "%s", j.Log())
	require.Equal(t, 3, strings.Count(j.Log(), ": "+refused), "%s", j.Log())
}

func TestServices(t *testing.T) {
	for _, want := range []bool{false, true} {
		t.Run(fmt.Sprint(want), func(t *testing.T) {
			j := start(t, gitlab.JobSpec{
				Variables: variables("BERTH_GPU_COUNT", "2", "BERTH_GPU_SERVICES", fmt.Sprint(want), "CI_DEBUG_SERVICES", "true"),
				Services: []gitlab.Image{{
					Name: registry.Image(images.Busybox), Alias: "worker",
					Entrypoint: []string{"sh", "-c", "ls /dev | grep 'nvidia[0-9]' || echo no GPU; sleep 600"},
				}},
				Script: []string{"ls /dev | grep -c 'nvidia[0-9]'", "sleep 1"},
			})
			require.Equal(t, gitlab.Success, end(t, j))
			require.Contains(t, j.Log(), "\n2\n", "the build container")
			require.Equal(t, want, strings.Contains(j.Log(), "[service:worker] nvidia"))
			require.Equal(t, !want, strings.Contains(j.Log(), "[service:worker] no GPU"))
		})
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		variables []gitlab.Variable
		says      string
	}{
		"no such model": {variables("BERTH_GPU_MODEL", "h100"), "ERROR: admit job"},
		"too many":      {variables("BERTH_GPU_COUNT", "4"), `4 is more than profile "default" allows a job: ask for 3 at most`},
	} {
		t.Run(name, func(t *testing.T) {
			j := start(t, gitlab.JobSpec{Variables: c.variables, Script: []string{"echo not reached"}})
			require.Equal(t, gitlab.Failed, end(t, j))
			require.Contains(t, j.Log(), c.says)
			require.NotContains(t, j.Log(), "not reached")
		})
	}
}

// TestWaits has a job wait for another, while berthd is killed, and started
// again.
func TestWaits(t *testing.T) {
	hold := gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "3"), Script: []string{"echo holding; while ! [ -e /tmp/go ]; do sleep 0.1; done"}}
	first := start(t, hold)
	require.NoError(t, first.WaitLog(t.Context(), "\nholding\n"))
	require.NoError(t, node.KillDaemon())
	require.NoError(t, node.StartDaemon(t.Context()))
	list, err := node.Client.GPUs(t.Context())
	require.NoError(t, err)
	var key string
	held := 0
	for _, g := range list.GPUs {
		if g.Holder != nil {
			key = g.Holder.Job
			held++
		}
	}
	require.Equal(t, 3, held, "a new berthd knows")

	second := start(t, gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "1"), Script: []string{"echo mine"}})
	require.NoError(t, second.WaitLog(t.Context(), "Waiting for GPUs: place 1 of 1 for 1 × GPU; 0 of 3 are free: job"))
	jobs, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	a, err := node.Client.Admission(t.Context(), key)
	require.NoError(t, err, jobs)
	procs, err := filepath.Glob("/sys/fs/cgroup/*" + a.Cgroup + "/build/cgroup.procs")
	require.NoError(t, err)
	if len(procs) == 0 {
		procs = []string{"/sys/fs/cgroup" + a.Cgroup + "/build/cgroup.procs"} // v2
	}
	pids, err := os.ReadFile(procs[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join("/proc", strings.Fields(string(pids))[0], "root/tmp/go"), nil, 0o600))
	require.Equal(t, gitlab.Success, end(t, first))
	require.Equal(t, gitlab.Success, end(t, second))
	require.Contains(t, second.Log(), "\nmine\n")
}

// TestLeftover: what is left on a GPU keeps the next job away from it, and the
// job log tells what was used.
func TestLeftover(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	busy := map[string]nvmltest.State{}
	for g := range gpus - 1 {
		busy[nvmltest.UUID(g)] = nvmltest.State{Used: 3 << 30, Utilisation: 42, Energy: 100_000}
	}
	j := start(t, gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "1"), Script: []string{"echo busy; sleep 3"}})
	require.NoError(t, j.WaitLog(t.Context(), "\nbusy\n"))
	tell(t, busy)
	t.Cleanup(func() { tell(t, nil) })
	state, err := j.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, gitlab.Success, state)
	require.Regexp(t, `\d+% busy on average, 42% at most; 3GiB of 40GiB memory at most`, j.Log())
	require.NotContains(t, j.Log(), "HINT")
	quarantined := func() (n int) {
		list, err := node.Client.GPUs(t.Context())
		require.NoError(t, err)
		for _, g := range list.GPUs {
			if g.State == api.GPUQuarantined {
				require.Contains(t, g.Quarantine.Reason, "3GiB of its memory are in use")
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool { return quarantined() > 0 }, time.Minute, 50*time.Millisecond)
	tell(t, nil)
	require.Eventually(t, func() bool { return quarantined() == 0 }, 2*time.Minute, 100*time.Millisecond, "it returns by itself")
	require.NoError(t, node.AwaitClean(t.Context()))
}

// TestDocker starts containers by the job's docker endpoint: they get GPUs of
// the job's lease, and of no other.
func TestDocker(t *testing.T) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("needs the docker client")
	}
	run := "docker run --rm --pull never "
	image := " " + registryImage(images.Git) + " "
	// The kernel allows what it then finds nothing behind.
	lookAll := "sh -c 'for d in /dev/nvidia[0-9]*; do cat $d 2>&1 | grep -q \"No such device\" && echo has $d; done; for n in 0 1 2 3; do mknod /tmp/$n c 195 $n; cat /tmp/$n 2>&1 | grep -q \"No such device\" && echo opened $n || echo refused $n; done'"
	j := start(t, gitlab.JobSpec{
		Variables: variables("BERTH_GPU_COUNT", "1", "BERTH_GPU_MODEL", "a100"),
		Image:     gitlab.Image{Name: registryImage(images.Git)},
		Script: []string{
			"n=0; until docker version >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 300 ] || { docker version; exit 1; }; sleep 0.1; done",
			"echo without; " + run + image + lookAll,
			"echo all; " + run + "--gpus all" + image + lookAll,
			"echo by name; " + run + "--device nvidia.com/gpu=0" + image + lookAll,
			"echo too many; " + run + "--gpus 2" + image + "true || echo refused them",
			"echo of another; " + run + "--device nvidia.com/gpu=1" + image + "true || echo refused it",
			"echo of berth; " + run + "--device berth/gpu=j1.GPU-x" + image + "true || echo refused that",
		},
	})
	require.Equal(t, gitlab.Success, end(t, j))
	log := j.Log()
	part := func(from, to string) string {
		_, rest, ok := strings.Cut(log, "\n"+from+"\n")
		require.True(t, ok, from)
		text, _, ok := strings.Cut(rest, "\n"+to+"\n")
		require.True(t, ok, to)
		return text
	}
	count := func(text, line string) int { return len(regexp.MustCompile("(?m)^"+line+"$").FindAllString(text, -1)) }
	require.Zero(t, count(part("without", "all"), `has /dev/nvidia\d`))
	require.Equal(t, 4, count(part("without", "all"), `refused \d`))
	for _, text := range []string{part("all", "by name"), part("by name", "too many")} {
		require.Equal(t, 1, count(text, `has /dev/nvidia\d`), text)
		require.Equal(t, 1, count(text, `opened \d`), text)
		require.Equal(t, 3, count(text, `refused \d`), text)
	}
	for _, want := range []string{"\nrefused them\n", "\nrefused it\n", "\nrefused that\n", "the job has 1"} {
		require.Contains(t, log, want)
	}
}

// registryImage is the name of an image, or of none where there is no node.
func registryImage(name string) string {
	if registry == nil {
		return ""
	}
	return registry.Image(name)
}
