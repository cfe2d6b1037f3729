package stages

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
)

func TestWriteGPUUse(t *testing.T) {
	mean, peak, energy := 87.4, 100, 412_700.0
	var out strings.Builder
	writeGPUUse(&out, &api.GPUUse{Devices: []api.GPUDeviceUse{
		{UUID: "GPU-a", Name: "NVIDIA A100", Memory: 40 << 30, Samples: 9, Mean: &mean, Peak: &peak, MemoryPeak: 31 << 30, Energy: &energy, Used: true, XIDs: []uint64{31}, Lost: "it does not answer: GPU is lost", Throttled: []string{"too hot"}},
		{UUID: "MIG-b", Name: "NVIDIA A100 MIG 1g.5gb", Memory: 5 << 30, Samples: 9, MemoryPeak: 1 << 20},
	}})
	require.Equal(t, `GPU NVIDIA A100 (GPU-a): 87% busy on average, 100% at most; 31GiB of 40GiB memory at most; 412.7 kJ; slowed down: too hot
WARNING: it was lost meanwhile: it does not answer: GPU is lost
WARNING: the driver reported XID 31 on it meanwhile: https://docs.nvidia.com/deploy/xid-errors
GPU NVIDIA A100 MIG 1g.5gb (MIG-b): 1MiB of 5GiB memory at most
HINT: the job asked for 2 and used 1: others wait for what stands idle (BERTH_GPU_COUNT)
`, out.String())

	out.Reset()
	writeGPUUse(&out, &api.GPUUse{Unwatched: 12400 * time.Millisecond})
	require.Equal(t, "NOTE: for 12s nobody looked, since berthd or the driver did not answer; only energy is known of that time\n", out.String())

	out.Reset()
	writeGPUUse(&out, &api.GPUUse{Devices: []api.GPUDeviceUse{{UUID: "GPU-a", Name: "NVIDIA A100"}}})
	require.NotContains(t, out.String(), "HINT", "nobody has looked")
}

func TestWhoHasGPUs(t *testing.T) {
	node := func(minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: "/dev/nvidia", Type: "c", Major: 195, Minor: minor}
	}
	g := &api.GPUs{Devices: []string{"GPU-a"}, Nodes: []specs.LinuxDevice{node(0)}, Withheld: []specs.LinuxDevice{node(1)}}
	b := &berth{admission: &api.Admission{GPUs: g}}
	require.Equal(t, g, b.gpus("build"))
	for _, name := range []string{"helper", serviceName(0)} {
		none := b.gpus(name)
		require.Empty(t, none.Devices)
		require.Empty(t, none.Nodes)
		require.Equal(t, []specs.LinuxDevice{node(1), node(0)}, none.Withheld, "not even when privileged")
	}
	g.Services = true
	require.Equal(t, g, b.gpus(serviceName(0)))
	require.Empty(t, b.gpus("helper").Nodes)
	b.admission.GPUs = nil
	require.Nil(t, b.gpus("build"))
}
