//go:build cgo

package gpu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/gpu/nvml/nvmltest"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/test/clients"
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
	first := start(t, gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "3"), Script: []string{hold}})
	require.NoError(t, first.WaitLog(t.Context(), "\nholding\n"))
	busy := map[string]nvmltest.State{}
	for uuid := range held(t) {
		busy[uuid] = nvmltest.State{Utilisation: 42}
	}
	tell(t, busy)
	t.Cleanup(func() { tell(t, nil) })
	require.Eventually(t, func() bool {
		files, _ := filepath.Glob(filepath.Join(node.Config.GPUUses(), "*.json"))
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), `"peak":42`) {
				return true
			}
		}
		return false
	}, 5*time.Minute, 100*time.Millisecond, "it is written down")
	require.NoError(t, node.KillDaemon())
	tell(t, nil)
	require.NoError(t, node.StartDaemon(t.Context()))
	holders := held(t)
	require.Len(t, holders, 3, "a new berthd knows")

	second := start(t, gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "1"), Script: []string{"echo mine"}})
	require.NoError(t, second.WaitLog(t.Context(), "Waiting for GPUs: place 1 of 1 for 1 × GPU; 0 of 3 are free: job"))
	for uuid := range busy {
		letGo(t, holders[uuid])
		break
	}
	require.Equal(t, gitlab.Success, end(t, first))
	require.Equal(t, gitlab.Success, end(t, second))
	require.Contains(t, second.Log(), "\nmine\n")
	require.Equal(t, 3, strings.Count(first.Log(), ", 42% at most"), "%s", first.Log())
	require.NotContains(t, first.Log(), "HINT")
}

// TestFault has GPUs report faults while a job has them: it hears of them and
// goes on; one that is the GPU's keeps further jobs away from it.
func TestFault(t *testing.T) {
	j := start(t, gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "2"), Script: []string{hold}})
	require.NoError(t, j.WaitLog(t.Context(), "\nholding\n"))
	holders := held(t)
	require.Len(t, holders, 2)
	var broken, fine string
	xids := map[int]uint64{}
	for g := range gpus {
		switch uuid := nvmltest.UUID(g); {
		case holders[uuid] == "":
		case broken == "":
			broken, xids[g] = uuid, 79
		default:
			fine, xids[g] = uuid, 31
		}
	}
	report(t, xids)
	quarantine := func(uuid string) *api.GPUQuarantine {
		list, err := node.Client.GPUs(t.Context())
		require.NoError(t, err)
		for _, g := range list.GPUs {
			if g.UUID == uuid {
				return g.Quarantine
			}
		}
		require.FailNow(t, "not listed", uuid)
		return nil
	}
	require.Eventually(t, func() bool { return quarantine(broken) != nil }, 5*time.Minute, 50*time.Millisecond)
	t.Cleanup(func() { _ = node.Client.ReleaseGPU(context.Background(), broken) })
	require.Equal(t, api.QuarantineXID, quarantine(broken).Cause)
	require.Equal(t, holders, held(t), "who has it keeps it")
	letGo(t, holders[broken])
	require.Equal(t, gitlab.Success, end(t, j))
	require.Contains(t, j.Log(), "\nWARNING: the driver reported XID 79 on it meanwhile")
	require.Contains(t, j.Log(), "\nWARNING: the driver reported XID 31 on it meanwhile")
	require.Nil(t, quarantine(fine), "that was the program's own")

	next := start(t, gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "2"), Script: []string{"echo mine"}})
	require.Equal(t, gitlab.Success, end(t, next))
	require.NotContains(t, next.Log(), broken)
	require.NotNil(t, quarantine(broken), "nothing shows that it is mended")
	require.NoError(t, node.Client.ReleaseGPU(t.Context(), broken))
	require.Nil(t, quarantine(broken))
}

// TestDoctor has an operator look.
func TestDoctor(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	require.NoError(t, node.Client.QuarantineGPU(t.Context(), nvmltest.UUID(0), "noisy fan"))
	out, _ := exec.Command(programs.Berth, "doctor", "--socket", node.Config.Socket).Output() // it may find more
	require.NoError(t, node.Client.ReleaseGPU(t.Context(), nvmltest.UUID(0)))
	require.Regexp(t, `warn +GPU 0 +.*NVIDIA A100-SXM4-40GB \(`+nvmltest.UUID(0)+`\) is in quarantine since .*: noisy fan\n`, string(out))
	require.Contains(t, string(out), "berth gpu release "+nvmltest.UUID(0))
	require.Regexp(t, fmt.Sprintf(`ok +GPUs +%d of %d are in order; driver 550.54.15, CUDA 12.4\n`, gpus-1+instances-1, gpus-1+instances), string(out))
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
	require.Eventually(t, func() bool { return quarantined() > 0 }, 5*time.Minute, 50*time.Millisecond)
	tell(t, nil)
	require.Eventually(t, func() bool { return quarantined() == 0 }, 5*time.Minute, 100*time.Millisecond, "it returns by itself")
	require.NoError(t, node.AwaitClean(t.Context()))
}

// TestDocker starts containers by the job's docker endpoint: they get GPUs of
// the job's lease, and of no other.
func TestDocker(t *testing.T) {
	needDocker(t)
	run := "docker run --rm --pull never "
	image := " " + registryImage(images.Git) + " "
	j := start(t, gitlab.JobSpec{
		Variables: variables("BERTH_GPU_COUNT", "1", "BERTH_GPU_MODEL", "a100"),
		Image:     gitlab.Image{Name: registryImage(images.Git)},
		Script: []string{
			awaitDocker,
			"echo without; " + run + image + lookAll,
			"echo all; " + run + "--gpus all" + image + lookAll,
			"echo by name; " + run + "--device nvidia.com/gpu=0" + image + lookAll,
			"echo by variable; " + run + "-e NVIDIA_VISIBLE_DEVICES=all -e NVIDIA_DRIVER_CAPABILITIES=all" + image + lookAll,
			"echo by directory; " + run + "-v /dev:/dev/host" + image + "sh -c 'for d in /dev/host/nvidia[0-9]*; do cat $d 2>&1 | grep -q \"No such device\" && echo opened $d; done; true' || echo refused that directory",
			"echo too many; " + run + "--gpus 2" + image + "true || echo refused them",
			"echo of another; " + run + "--device nvidia.com/gpu=1" + image + "true || echo refused it",
			"echo of berth; " + run + "--device berth/gpu=j1.GPU-x" + image + "true || echo refused that",
			"for n in 0 1 2 3; do " + run + "--device /dev/nvidia$n" + image + "true || echo refused node $n; done",
			run + "--device-cgroup-rule 'c 195:* rwm'" + image + "true || echo refused the rule",
			run + "--runtime nvidia" + image + "true || echo refused the runtime",
			run + "--privileged" + image + "true || echo refused privilege",
			"docker create --name mine" + image + "true && docker update --device-cgroup-rule 'c 195:* rwm' mine || echo refused the change",
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
	for _, text := range []string{part("without", "all"), part("by variable", "by directory")} {
		require.Zero(t, lines(text, `has /dev/nvidia\d`), text)
		require.Equal(t, gpus, lines(text, `refused \d`), text)
	}
	require.Zero(t, lines(part("by directory", "too many"), `opened .*`))
	for _, text := range []string{part("all", "by name"), part("by name", "by variable")} {
		require.Equal(t, 1, lines(text, `has /dev/nvidia\d`), text)
		require.Equal(t, 1, lines(text, `opened \d`), text)
		require.Equal(t, gpus-1, lines(text, `refused \d`), text)
	}
	for _, want := range []string{"them", "it", "that", "node 0", "node 1", "node 2", "node 3", "the rule", "the runtime", "privilege", "the change"} {
		require.Contains(t, log, "\nrefused "+want+"\n")
	}
	require.Contains(t, log, "the job has 1")
}

const (
	awaitDocker = "n=0; until docker version >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 3000 ] || { docker version; exit 1; }; sleep 0.1; done"
	// lookAll is a command that tells which GPUs a container has, and which the
	// kernel lets it open, which says that nothing is behind them.
	lookAll = "sh -c 'for d in /dev/nvidia[0-9]*; do cat $d 2>&1 | grep -q \"No such device\" && echo has $d; done; for n in 0 1 2 3; do mknod /tmp/$n c 195 $n; cat /tmp/$n 2>&1 | grep -q \"No such device\" && echo opened $n || echo refused $n; done'"
)

// lines counts those of a kind.
func lines(text, line string) int {
	return len(regexp.MustCompile("(?m)^"+line+"$").FindAllString(text, -1))
}

// TestPrivilegedDocker: the job's cgroup keeps other GPUs even from those who
// may do all.
func TestPrivilegedDocker(t *testing.T) {
	needDocker(t)
	run := "docker run --rm --pull never --privileged "
	image := " " + registryImage(images.Git) + " "
	for count, want := range map[string]int{"0": 0, "1": 1} {
		t.Run(count, func(t *testing.T) {
			j := start(t, gitlab.JobSpec{
				Tags: []string{"privileged"}, Variables: variables("BERTH_GPU_COUNT", count),
				Image: gitlab.Image{Name: registryImage(images.Git)},
				Script: []string{
					awaitDocker, run + image + lookAll,
					run + "--device-cgroup-rule 'a *:* rwm'" + image + lookAll,
				},
			})
			require.Equal(t, gitlab.Success, end(t, j))
			require.Equal(t, 2*want, lines(j.Log(), `opened \d`), "%s", j.Log())
			require.Equal(t, 2*(gpus-want), lines(j.Log(), `refused \d`), "%s", j.Log())
		})
	}
}

// TestImageAsks: most images with CUDA ask for all GPUs.
func TestImageAsks(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	busybox, err := name.ParseReference(registry.Image(images.Busybox))
	require.NoError(t, err)
	base, err := remote.Image(busybox)
	require.NoError(t, err)
	c, err := base.ConfigFile()
	require.NoError(t, err)
	c.Config.Env = append(c.Config.Env, "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all", "CUDA_VISIBLE_DEVICES=0,1,2,3")
	greedy, err := mutate.ConfigFile(base, c)
	require.NoError(t, err)
	made := busybox.Context().Registry.Repo("test", "greedy").Tag("1")
	require.NoError(t, remote.Write(made, greedy))
	for count, want := range map[string]int{"0": 0, "2": 2} {
		t.Run(count, func(t *testing.T) {
			j := start(t, gitlab.JobSpec{
				Variables: variables("BERTH_GPU_COUNT", count), Image: gitlab.Image{Name: made.Name()},
				Script: []string{
					mknod, "for n in 0 1 2 3; do number 195 $n; done",
					"tr '\\0' '\\n' </proc/1/environ | grep _VISIBLE",
					"ls /usr/lib/x86_64-linux-gnu 2>/dev/null | grep libnvidia-encode || echo no more than is asked for",
				},
			})
			require.Equal(t, gitlab.Success, end(t, j))
			require.Equal(t, want, strings.Count(j.Log(), ": "+allowed), "%s", j.Log())
			require.Equal(t, gpus-want, strings.Count(j.Log(), ": "+refused), "%s", j.Log())
			require.Contains(t, j.Log(), "\nNVIDIA_VISIBLE_DEVICES=void\n")
			require.NotContains(t, j.Log(), "\nNVIDIA_VISIBLE_DEVICES=all\n")
			require.Equal(t, want > 0, strings.Contains(j.Log(), "\nCUDA_VISIBLE_DEVICES=0,1\n"))
			require.Contains(t, j.Log(), "\nno more than is asked for\n")
		})
	}
}

// TestCompose has a project ask for GPUs in all ways of a compose file.
func TestCompose(t *testing.T) {
	needDocker(t)
	require.NoError(t, clients.Compose(t.Context(), filepath.Join(dir, plugins)))
	ask := func(service, devices string) string {
		return service + ": {image: " + registryImage(images.Git) + ", pull_policy: never, command: ls /dev, " + devices + "}"
	}
	reserve := func(service, device string) string {
		return ask(service, "deploy: {resources: {reservations: {devices: [{"+device+"}]}}}")
	}
	file := "services: {" + strings.Join([]string{
		ask("none", "network_mode: none"),
		reserve("counted", "driver: nvidia, count: 1, capabilities: [gpu]"),
		reserve("all", "driver: nvidia, count: all, capabilities: [gpu, utility]"),
		reserve("second", "driver: nvidia, device_ids: [\"1\"], capabilities: [gpu]"),
		reserve("cdi", "driver: cdi, device_ids: [nvidia.com/gpu=0], capabilities: [gpu]"),
		ask("short", "gpus: all"),
		ask("device", "devices: [nvidia.com/gpu=1]"),
		reserve("many", "driver: nvidia, count: 3, capabilities: [gpu]"),
		reserve("other", "driver: nvidia, device_ids: [\"2\"], capabilities: [gpu]"),
		reserve("tpu", "capabilities: [tpu]"),
	}, ", ") + "}"
	script := []string{
		"n=0; until docker version >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 300 ] || { docker version; exit 1; }; sleep 0.1; done",
		"cat >compose.yaml <<'END'\n" + file + "\nEND",
	}
	want := map[string]int{"none": 0, "counted": 1, "all": 2, "second": 1, "cdi": 1, "short": 2, "device": 1}
	for service := range want {
		script = append(script, fmt.Sprintf("echo %s has $(docker compose run --rm -T %[1]s 2>/dev/null | grep -c '^nvidia[0-9]')", service))
	}
	for _, service := range []string{"many", "other", "tpu"} {
		script = append(script, "if docker compose run --rm -T "+service+"; then echo "+service+" runs; fi")
	}
	j := start(t, gitlab.JobSpec{
		Variables: variables("BERTH_GPU_COUNT", "2", "BERTH_GPU_MODEL", "a100"),
		Image:     gitlab.Image{Name: registryImage(images.Git)}, Script: script,
	})
	require.Equal(t, gitlab.Success, end(t, j))
	for service, n := range want {
		require.Contains(t, j.Log(), fmt.Sprintf("\n%s has %d\n", service, n))
	}
	require.NotContains(t, j.Log(), " runs\n")
	require.Contains(t, j.Log(), "the job has 2")
}

// registryImage is the name of an image, or of none where there is no node.
func registryImage(name string) string {
	if registry == nil {
		return ""
	}
	return registry.Image(name)
}
