//go:build cgo

package nvml

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"tags.cncf.io/container-device-interface/specs-go"

	"gitlab.com/berth-ci/berth/executor"
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
	require.ErrorContains(t, err, uvm+", without which nothing computes, and nvidia-modprobe -u -c 0 makes none: ")
	require.True(t, errdefs.IsUnavailable(err))
	script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = '-u -c 0' ] && mv %s-gone %s", uvm, uvm)
	require.NoError(t, os.WriteFile(d.options.Root+"/usr/bin/nvidia-modprobe", []byte(script), 0o755))
	_, err = d.Inventory(t.Context())
	require.NoError(t, err, "the driver's program makes it")

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

// TestInstanceUtilisation has GPUs of the kind that tell how busy their
// instances are.
func TestInstanceUtilisation(t *testing.T) {
	lib, d := open(t, 2, map[int]int{0: 2, 1: 1})
	busy, other := nvmltest.InstanceUUID(0, 1), nvmltest.InstanceUUID(1, 0)
	read := func() map[string]gpu.Reading {
		t.Helper()
		for _, s := range d.samples { // as if a while had gone by
			s.at = s.at.Add(-gpmPause)
		}
		readings, err := d.Read(t.Context(), []string{nvmltest.InstanceUUID(0, 0), busy, other})
		require.NoError(t, err)
		for uuid, r := range readings {
			require.Empty(t, r.Unread, uuid)
		}
		return readings
	}
	percent := 41.6
	lib.Set(busy, nvmltest.State{Busy: &percent})
	require.Nil(t, read()[busy].Utilisation, "there is nothing to compare with")
	for range 3 {
		readings := read()
		require.Equal(t, 42, *readings[busy].Utilisation)
		require.Nil(t, readings[nvmltest.InstanceUUID(0, 0)].Utilisation, "which the library does not tell")
		require.Nil(t, readings[other].Utilisation, "of a GPU that cannot")
	}
	require.Equal(t, 2, lib.Samples(), "one for each instance that was looked at")
	percent = 7
	again, err := d.Read(t.Context(), []string{busy})
	require.NoError(t, err)
	require.Equal(t, 42, *again[busy].Utilisation, "too soon for another look")
	for _, function := range []string{"GpmQueryDeviceSupport", "GpmSampleAlloc", "GpmMigSampleGet", "GpmMetricsGet"} {
		lib.Fault(function, nvml.ERROR_UNKNOWN)
		for _, s := range d.samples {
			s.at = s.at.Add(-gpmPause)
		}
		broken, err := d.Read(t.Context(), []string{busy})
		require.NoError(t, err)
		require.Nil(t, broken[busy].Utilisation)
		require.Len(t, broken[busy].Unread, 1, function)
		lib.Fault(function, nvml.SUCCESS)
	}
	read()
	require.Equal(t, 7, *read()[busy].Utilisation)
	require.Equal(t, 2, lib.Samples(), "faults leave none behind")
	lib.Lack("nvmlGpmMigSampleGet")
	require.Nil(t, read()[busy].Utilisation)
}

// TestOlderDrivers: what a library does not have is not called, which would
// end the process.
func TestOlderDrivers(t *testing.T) {
	lib, d := open(t, 1, nil)
	lib.Lack("nvmlDeviceGetNumaNodeId")
	lib.Lack("nvmlDeviceGetCurrentClocksEventReasons")
	lib.Fault("GetNumaNodeId", nvml.ERROR_UNKNOWN)
	lib.Fault("GetCurrentClocksEventReasons", nvml.ERROR_UNKNOWN)
	lib.Set(nvmltest.UUID(0), nvmltest.State{Throttle: nvml.ClocksEventReasonSwPowerCap})
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.Empty(t, i.Devices[0].Unread)
	readings, err := d.Read(t.Context(), []string{nvmltest.UUID(0)})
	require.NoError(t, err)
	require.Empty(t, readings[nvmltest.UUID(0)].Unread)
	require.Equal(t, []string{"power limit"}, readings[nvmltest.UUID(0)].Throttled)

	old := nvmltest.New(1, nil)
	old.Lack("nvmlDeviceGetMigMode")
	_, err = New(old, Options{})
	require.ErrorContains(t, err, "too old: its library has no nvmlDeviceGetMigMode")
	require.True(t, errdefs.IsUnavailable(err))
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

// TestFaultAtEachCall has one call after the other fail, and no other: what is
// told then is true, if less.
func TestFaultAtEachCall(t *testing.T) {
	lib, d := open(t, 2, map[int]int{1: 2})
	percent := 50.0
	lib.Set(nvmltest.InstanceUUID(1, 0), nvmltest.State{Busy: &percent, Used: 3 << 30})
	asked := []string{nvmltest.UUID(0), nvmltest.InstanceUUID(1, 0)}
	round := func() (*gpu.Inventory, map[string]gpu.Reading, error) {
		d.registered, d.events, d.common = map[string]bool{}, nil, nil
		i, err1 := d.Inventory(context.Background())
		r, err2 := d.Read(context.Background(), asked)
		_, err3 := d.Events(context.Background())
		return i, r, errors.Join(err1, err2, err3)
	}
	lib.FaultAt(0, nvml.SUCCESS)
	whole, _, err := round()
	require.NoError(t, err)
	calls := lib.Count()
	require.Greater(t, calls, 100)
	for _, ret := range []nvml.Return{nvml.ERROR_NO_PERMISSION, nvml.ERROR_GPU_IS_LOST} {
		for n := 1; n <= calls; n++ {
			lib.FaultAt(n, ret)
			i, readings, err := round()
			if err != nil {
				require.True(t, errdefs.IsUnavailable(err) || errdefs.IsNotImplemented(err) || errdefs.IsNotFound(err), "call %d: %v", n, err)
			}
			if i != nil {
				for _, got := range i.Devices {
					at := slices.IndexFunc(whole.Devices, func(d gpu.Device) bool { return d.UUID == got.UUID })
					if at < 0 {
						require.NotEmpty(t, got.Unusable, "call %d: a device that there is not", n)
						continue
					}
					want := whole.Devices[at]
					require.Equal(t, want.MIG, got.MIG, "call %d", n)
					require.Equal(t, want.Model, got.Model, "call %d", n)
					if got.Unusable == "" {
						require.Equal(t, want.Edits.DeviceNodes, got.Edits.DeviceNodes, "call %d", n)
					}
				}
			}
			for uuid, r := range readings {
				used := map[string]executor.Bytes{asked[1]: 3 << 30}[uuid]
				silent := r.Lost != "" || len(r.Unread) > 0
				require.True(t, r.MemoryUsed == used || silent, "call %d: %s has %v in use", n, uuid, r.MemoryUsed)
			}
		}
	}
	lib.FaultAt(0, nvml.SUCCESS)
	again, _, err := round()
	require.NoError(t, err)
	require.Equal(t, len(whole.Devices), len(again.Devices), "all is well again")
	require.Equal(t, whole.Links, again.Links)
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
