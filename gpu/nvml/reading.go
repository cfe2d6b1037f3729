//go:build cgo

package nvml

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
)

// Read tells how devices are.
func (d *Driver) Read(_ context.Context, uuids []string) (map[string]gpu.Reading, error) {
	readings := make(map[string]gpu.Reading, len(uuids))
	for _, uuid := range uuids {
		readings[uuid] = d.read(uuid)
	}
	return readings, nil
}

func (d *Driver) read(uuid string) gpu.Reading {
	r := gpu.Reading{At: time.Now()}
	h, ret := d.lib.DeviceGetHandleByUUID(uuid)
	if ret != nvml.SUCCESS {
		r.Lost = fmt.Sprintf("it cannot be found: %v", ret)
		return r
	}
	memory, ret := h.GetMemoryInfo()
	if gone(ret) {
		r.Lost = fmt.Sprintf("it does not answer: %v", ret)
		return r
	}
	if told(ret, "memory", &r.Unread) {
		r.MemoryUsed = executor.Bytes(memory.Used)
	}
	processes, ret := h.GetComputeRunningProcesses()
	if told(ret, "processes", &r.Unread) {
		for _, p := range processes {
			process := gpu.Process{PID: int(p.Pid)}
			if p.UsedGpuMemory != math.MaxUint64 { // not known
				process.Memory = executor.Bytes(p.UsedGpuMemory)
			}
			r.Processes = append(r.Processes, process)
		}
	}
	if use, ret := h.GetUtilizationRates(); told(ret, "utilisation", &r.Unread) {
		percent := int(use.Gpu)
		r.Utilisation = &percent
	}
	if energy, ret := h.GetTotalEnergyConsumption(); told(ret, "energy", &r.Unread) {
		r.Energy = &energy
	}
	// Only the whole GPU knows the rest.
	if mig, ret := h.IsMigDeviceHandle(); ret == nvml.SUCCESS && mig {
		m := h
		if h, ret = m.GetDeviceHandleFromMigDeviceHandle(); ret != nvml.SUCCESS {
			r.Unread = append(r.Unread, fmt.Sprintf("health: %v", ret))
			return r
		}
		r.Utilisation = d.instanceUtilisation(uuid, m, h, &r.Unread)
		r.Energy = nil // that of all instances together, where a driver tells it
	}
	if n, ret := h.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); told(ret, "ECC errors", &r.Unread) {
		r.Uncorrected = n
	}
	if _, _, pending, failed, ret := h.GetRemappedRows(); told(ret, "remapped rows", &r.Unread) {
		r.RemapPending, r.RemapFailed = pending, failed
	}
	if reasons, ret := d.throttleReasons(h); told(ret, "throttling", &r.Unread) {
		for _, t := range throttles {
			if reasons&t.bit != 0 {
				r.Throttled = append(r.Throttled, t.why)
			}
		}
	}
	return r
}

// throttles are the reasons that somebody can do something about.
var throttles = []struct {
	bit uint64
	why string
}{
	{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown"},
	{nvml.ClocksThrottleReasonHwThermalSlowdown, "too hot (hardware)"},
	{nvml.ClocksEventReasonSwThermalSlowdown, "too hot"},
	{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"},
	{nvml.ClocksEventReasonSwPowerCap, "power limit"},
}
