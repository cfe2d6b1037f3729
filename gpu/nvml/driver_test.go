//go:build cgo

package nvml

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"tags.cncf.io/container-device-interface/specs-go"

	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/nvml/nvmltest"
)

// open makes a driver of a machine with n GPUs.
func open(t testing.TB, n int, mig map[int]int) (*nvmltest.Library, *Driver) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes device nodes")
	}
	root := t.TempDir()
	require.NoError(t, nvmltest.MakeRoot(root, n, mig))
	lib := nvmltest.New(n, mig)
	d, err := New(lib, Options{Root: root, Hook: "/usr/libexec/berth/berth-gpu"})
	require.NoError(t, err)
	return lib, d
}

func pathsOf(e specs.ContainerEdits) (nodes, mounts []string) {
	for _, n := range e.DeviceNodes {
		nodes = append(nodes, n.Path)
	}
	for _, m := range e.Mounts {
		mounts = append(mounts, m.ContainerPath)
	}
	slices.Sort(nodes)
	slices.Sort(mounts)
	return nodes, mounts
}

func TestInventory(t *testing.T) {
	_, d := open(t, 8, map[int]int{7: 7})
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, "550.54.15", i.Driver)
	require.Equal(t, "12.4", i.CUDA)
	require.Empty(t, i.Faults)
	require.Len(t, i.Devices, 7+7)
	require.Len(t, i.Links, 8*7/2)

	whole := i.Devices[1]
	require.Equal(t, nvmltest.UUID(1), whole.UUID)
	require.Equal(t, whole.UUID, whole.GPU)
	require.Contains(t, whole.Model, "NVIDIA A100-SXM4-40GB")
	require.EqualValues(t, 40<<30, whole.Memory)
	require.Equal(t, "0000:08:00.0", whole.PCI)
	require.Equal(t, 0, whole.NUMA)
	require.Equal(t, "0-15", whole.CPUs)
	require.Equal(t, "16-31", i.Devices[4].CPUs)
	require.Empty(t, whole.Unread)
	require.True(t, *whole.Persistence)
	require.Empty(t, whole.Edits.Hooks)
	nodes, _ := pathsOf(whole.Edits)
	require.Equal(t, []string{"/dev/nvidia1"}, nodes)
	nodes, mounts := pathsOf(i.Edits)
	require.Equal(t, []string{"/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}, nodes)
	require.Contains(t, mounts, "/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15")
	require.Contains(t, mounts, "/usr/bin/nvidia-smi")
	require.Contains(t, i.Edits.Env, "NVIDIA_VISIBLE_DEVICES=void")
	var hooks []string
	for _, h := range i.Edits.Hooks {
		require.Equal(t, "/usr/libexec/berth/berth-gpu", h.Path)
		hooks = append(hooks, h.Args[1])
	}
	require.Contains(t, hooks, "update-ldcache")
	require.Contains(t, hooks, "create-symlinks")

	instance := i.Devices[9]
	require.Equal(t, nvmltest.InstanceUUID(7, 2), instance.UUID)
	require.Equal(t, nvmltest.UUID(7), instance.GPU)
	require.Equal(t, "1g.5gb", instance.MIG)
	require.Equal(t, 3, instance.GPUInstance)
	require.EqualValues(t, 4864<<20, instance.Memory)
	nodes, _ = pathsOf(instance.Edits)
	require.Equal(t, []string{"/dev/nvidia-caps/nvidia-cap7", "/dev/nvidia-caps/nvidia-cap8", "/dev/nvidia7"}, nodes)

	require.Equal(t, gpu.Link{A: nvmltest.UUID(0), B: nvmltest.UUID(1), NVLinks: 12, Path: gpu.PathNode}, i.Links[0])
}

func TestInventoryWithoutNodes(t *testing.T) {
	_, d := open(t, 2, map[int]int{1: 1})
	require.NoError(t, os.Remove(d.options.Root+"/dev/nvidia0"))
	require.NoError(t, os.Remove(d.options.Root+"/dev/nvidia-caps/nvidia-cap4"))
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Contains(t, i.Devices[0].Unusable, "/dev/nvidia0 is missing")
	require.Contains(t, i.Devices[1].Unusable, "nvidia-cap4 is missing")

	uvm := d.options.Root + "/dev/nvidia-uvm"
	require.NoError(t, os.Rename(uvm, uvm+"-gone"))
	d.common = nil
	_, err = d.Inventory(t.Context())
	require.ErrorContains(t, err, uvm+", without which nothing computes")
	require.True(t, errdefs.IsUnavailable(err))
	require.NoError(t, os.Rename(uvm+"-gone", uvm))
	_, err = d.Inventory(t.Context())
	require.NoError(t, err, "once it was made")

	require.NoError(t, os.Remove(d.options.Root+"/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15"))
	d.common = nil
	_, err = d.Inventory(t.Context())
	require.ErrorContains(t, err, "libcuda")
	require.True(t, errdefs.IsUnavailable(err))
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	for ret, says := range map[nvml.Return]string{
		nvml.ERROR_LIBRARY_NOT_FOUND:       "libnvidia-ml.so.1 is not installed",
		nvml.ERROR_DRIVER_NOT_LOADED:       "its kernel module is not loaded",
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: "was upgraded",
		nvml.ERROR_UNKNOWN:                 "ERROR_UNKNOWN",
	} {
		lib := nvmltest.New(1, nil)
		lib.Fault("Init", ret)
		_, err := New(lib, Options{})
		require.ErrorContains(t, err, says)
		gone := ret == nvml.ERROR_LIBRARY_NOT_FOUND || ret == nvml.ERROR_DRIVER_NOT_LOADED
		require.Equal(t, gone, errdefs.IsNotFound(err), "%v", err)
	}
	_, err := Open(Options{Root: t.TempDir()})
	require.True(t, errdefs.IsNotFound(err))
}

func TestRead(t *testing.T) {
	lib, d := open(t, 2, map[int]int{1: 2})
	lib.Set(nvmltest.UUID(0), nvmltest.State{Used: 1 << 30, Utilisation: 42, Energy: 5000, Processes: []uint32{7, 8}, Uncorrected: 3, RemapPending: true, Throttle: nvml.ClocksThrottleReasonHwThermalSlowdown | nvml.ClocksEventReasonGpuIdle})
	lib.Set(nvmltest.UUID(1), nvmltest.State{RemapFailed: true, Energy: 1})
	instance := nvmltest.InstanceUUID(1, 1)
	readings, err := d.Read(t.Context(), []string{nvmltest.UUID(0), instance, "GPU-gone"})
	require.NoError(t, err)
	whole := readings[nvmltest.UUID(0)]
	require.EqualValues(t, 1<<30, whole.MemoryUsed)
	require.Equal(t, 42, *whole.Utilisation)
	require.EqualValues(t, 5000, *whole.Energy)
	require.Equal(t, []gpu.Process{{PID: 7}, {PID: 8}}, whole.Processes)
	require.EqualValues(t, 3, whole.Uncorrected)
	require.True(t, whole.RemapPending)
	require.Equal(t, []string{"too hot (hardware)"}, whole.Throttled)
	require.Nil(t, readings[instance].Utilisation)
	require.Nil(t, readings[instance].Energy)
	require.True(t, readings[instance].RemapFailed, "its GPU's memory")
	require.Contains(t, readings["GPU-gone"].Lost, "it cannot be found")
}

func TestEvents(t *testing.T) {
	lib, d := open(t, 2, map[int]int{1: 2})
	lib.XID(0, 79, -1)
	lib.XID(1, 94, 1)
	var events []gpu.Event
	for len(events) < 2 {
		more, err := d.Events(t.Context())
		require.NoError(t, err)
		events = append(events, more...)
	}
	require.Equal(t, []gpu.Event{
		{GPU: nvmltest.UUID(0), XID: 79, GPUInstance: -1, ComputeInstance: -1},
		{GPU: nvmltest.UUID(1), XID: 94, GPUInstance: 2, ComputeInstance: 0},
	}, events)
	none, err := d.Events(t.Context())
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestHotRemoval(t *testing.T) {
	lib, d := open(t, 3, nil)
	lib.Remove(1)
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Len(t, i.Devices, 2)
	readings, err := d.Read(t.Context(), []string{nvmltest.UUID(1)})
	require.NoError(t, err)
	require.NotEmpty(t, readings[nvmltest.UUID(1)].Lost)
}

// TestFaultsAtEveryCall has each function of NVML that is used fail in turn, in
// several ways: it is told what is missing, and never a device made up.
func TestFaultsAtEveryCall(t *testing.T) {
	lib, d := open(t, 2, map[int]int{1: 2})
	all := func() (*gpu.Inventory, map[string]gpu.Reading, []gpu.Event, []error) {
		i, err1 := d.Inventory(context.Background())
		r, err2 := d.Read(context.Background(), []string{nvmltest.UUID(0), nvmltest.InstanceUUID(1, 0)})
		e, err3 := d.Events(context.Background())
		return i, r, e, []error{err1, err2, err3}
	}
	whole, _, _, errs := all()
	require.NoError(t, errors.Join(errs...))
	functions := lib.Calls()
	require.Greater(t, len(functions), 25)
	for _, function := range functions {
		for _, ret := range []nvml.Return{nvml.ERROR_UNKNOWN, nvml.ERROR_GPU_IS_LOST, nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_TIMEOUT, nvml.ERROR_UNINITIALIZED, nvml.ERROR_INSUFFICIENT_SIZE} {
			t.Run(function+" "+strings.TrimPrefix(ret.Error(), "ERROR_"), func(t *testing.T) {
				d.registered, d.events, d.common = map[string]bool{}, nil, nil
				lib.Fault(function, ret)
				i, readings, events, errs := all()
				lib.Fault(function, nvml.SUCCESS)
				for _, err := range errs {
					if err != nil {
						require.True(t, errdefs.IsUnavailable(err) || errdefs.IsNotImplemented(err) || errdefs.IsNotFound(err), "%v", err)
					}
				}
				if errs[0] == nil {
					for _, got := range i.Devices {
						at := slices.IndexFunc(whole.Devices, func(d gpu.Device) bool { return d.UUID == got.UUID })
						if at < 0 { // a GPU whose instances cannot be read
							require.True(t, got.Unusable != "" || function == "GetMigMode" && ret == nvml.ERROR_NOT_SUPPORTED, "what is cut is not whole")
							continue
						}
						want := whole.Devices[at]
						require.Equal(t, want.Model, got.Model)
						require.Equal(t, want.MIG, got.MIG)
						if got.Unusable == "" {
							require.Equal(t, want.Edits.DeviceNodes, got.Edits.DeviceNodes)
						}
					}
					if len(i.Devices) < len(whole.Devices) && ret != nvml.ERROR_NOT_SUPPORTED {
						told := slices.Clone(i.Faults)
						for _, d := range i.Devices {
							told = append(told, d.Unusable)
							told = append(told, d.Unread...)
						}
						require.NotEmpty(t, strings.Join(told, ""), "devices are missing, and nobody says why")
					}
				}
				require.Empty(t, events)
				for uuid, r := range readings {
					if strings.HasPrefix(function, "Get") && ret == nvml.ERROR_UNKNOWN && slices.Contains([]string{"GetMemoryInfo", "GetComputeRunningProcesses", "GetTotalEccErrors", "GetRemappedRows"}, function) {
						require.True(t, r.Lost != "" || len(r.Unread) > 0, "%s: %s", uuid, function)
					}
				}
			})
		}
	}
	again, _, _, errs := all()
	require.NoError(t, errors.Join(errs...))
	require.Equal(t, len(whole.Devices), len(again.Devices), "all is well again")
}

func TestCPUList(t *testing.T) {
	for want, mask := range map[string][]uint{"": {0}, "0": {1}, "0-3": {0xf}, "0-1,4": {0x13}, "63": {1 << 63}, "63-64": {1 << 63, 1}, "0-127": {^uint(0), ^uint(0)}} {
		require.Equal(t, want, cpuList(mask))
	}
}

func BenchmarkInventory(b *testing.B) {
	_, d := open(b, 8, map[int]int{0: 7, 1: 7, 2: 7, 3: 7, 4: 7, 5: 7, 6: 7, 7: 7})
	for b.Loop() {
		if _, err := d.Inventory(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
