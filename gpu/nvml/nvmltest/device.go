//go:build cgo

package nvmltest

import (
	"fmt"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// whole completes a GPU: four of eight on each NUMA node, twelve NVLinks to a
// switch, as in a DGX.
func (l *Library) whole(g int, d *server.Device, instances int) {
	d.UUID = UUID(g)
	l.all[d.UUID] = d
	l.common(&d.Device, d.UUID, d.Config.Name, d.Config.MemoryMB<<20)
	d.GetMinorNumberFunc = one(l, "GetMinorNumber", value(g))
	d.GetPciInfoFunc = one(l, "GetPciInfo", func() (nvml.PciInfo, nvml.Return) {
		p := nvml.PciInfo{Bus: uint32(g + 7), PciDeviceId: d.Config.PciDeviceId}
		for i, c := range fmt.Sprintf("00000000:%02X:00.0", g+7) {
			p.BusId[i] = int8(c)
		}
		return p, nvml.SUCCESS
	})
	d.GetNumaNodeIdFunc = one(l, "GetNumaNodeId", value(g/4))
	d.GetCpuAffinityFunc = func(n int) ([]uint, nvml.Return) {
		if ret := l.enter("GetCpuAffinity"); ret != nvml.SUCCESS {
			return nil, ret
		}
		mask := make([]uint, (n+63)/64)
		mask[0] = 0xffff << (g / 4 * 16)
		return mask, nvml.SUCCESS
	}
	l.gpmDevice(g, d)
	d.GetPersistenceModeFunc = one(l, "GetPersistenceMode", value(nvml.FEATURE_ENABLED))
	d.IsMigDeviceHandleFunc = one(l, "IsMigDeviceHandle", value(false))
	d.GetMigModeFunc = func() (int, int, nvml.Return) {
		mode := nvml.DEVICE_MIG_DISABLE
		if instances > 0 {
			mode = nvml.DEVICE_MIG_ENABLE
		}
		return mode, mode, l.enter("GetMigMode")
	}
	d.GetMaxMigDeviceCountFunc = one(l, "GetMaxMigDeviceCount", value(7))
	var cut []nvml.Device
	for i := range instances {
		cut = append(cut, l.instance(g, i, d))
	}
	d.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if ret := l.enter("GetMigDeviceHandleByIndex"); ret != nvml.SUCCESS {
			return nil, ret
		}
		if i >= len(cut) {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return cut[i], nvml.SUCCESS
	}
	d.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
		if ret := l.enter("GetNvLinkState"); ret != nvml.SUCCESS {
			return nvml.FEATURE_DISABLED, ret
		}
		if link >= 12 {
			return nvml.FEATURE_DISABLED, nvml.ERROR_INVALID_ARGUMENT
		}
		return nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	d.GetNvLinkRemotePciInfoFunc = func(int) (nvml.PciInfo, nvml.Return) {
		return nvml.PciInfo{Bus: 0xc4}, l.enter("GetNvLinkRemotePciInfo")
	}
	d.GetTopologyCommonAncestorFunc = func(other nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
		ret := l.enter("GetTopologyCommonAncestor")
		if index := other.(*server.Device).Index; index/4 != g/4 {
			return nvml.TOPOLOGY_SYSTEM, ret
		}
		return nvml.TOPOLOGY_NODE, ret
	}
	d.GetSupportedEventTypesFunc = one(l, "GetSupportedEventTypes", value(uint64(nvml.EventTypeXidCriticalError|nvml.EventTypeDoubleBitEccError)))
	d.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return l.enter("RegisterEvents") }
}

// instance makes what MIG cuts a GPU into.
func (l *Library) instance(g, i int, parent nvml.Device) nvml.Device {
	uuid := InstanceUUID(g, i)
	name, _ := parent.GetName()
	m := &mock.Device{}
	l.all[uuid] = m
	l.common(m, uuid, name+" MIG 1g.5gb", 4864<<20)
	m.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
	m.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	m.IsMigDeviceHandleFunc = one(l, "IsMigDeviceHandle", value(true))
	m.GetGpuInstanceIdFunc = one(l, "GetGpuInstanceId", value(i+1))
	m.GetComputeInstanceIdFunc = one(l, "GetComputeInstanceId", value(0))
	m.GetDeviceHandleFromMigDeviceHandleFunc = one(l, "GetDeviceHandleFromMigDeviceHandle", value(parent))
	return m
}

// common are the functions that GPUs and instances both have.
func (l *Library) common(d *mock.Device, uuid, name string, memory uint64) {
	d.GetUUIDFunc = one(l, "GetUUID", value(uuid))
	d.GetNameFunc = one(l, "GetName", value(name))
	d.GetMemoryInfoFunc = one(l, "GetMemoryInfo", func() (nvml.Memory, nvml.Return) {
		used := l.of(uuid).Used
		return nvml.Memory{Total: memory, Used: used, Free: memory - used}, nvml.SUCCESS
	})
	d.GetComputeRunningProcessesFunc = one(l, "GetComputeRunningProcesses", func() (list []nvml.ProcessInfo, _ nvml.Return) {
		for _, pid := range l.of(uuid).Processes {
			list = append(list, nvml.ProcessInfo{Pid: pid, UsedGpuMemory: math.MaxUint64})
		}
		return list, nvml.SUCCESS
	})
	d.GetUtilizationRatesFunc = one(l, "GetUtilizationRates", func() (nvml.Utilization, nvml.Return) {
		return nvml.Utilization{Gpu: l.of(uuid).Utilisation}, nvml.SUCCESS
	})
	d.GetTotalEnergyConsumptionFunc = one(l, "GetTotalEnergyConsumption", func() (uint64, nvml.Return) { return l.of(uuid).Energy, nvml.SUCCESS })
	d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) {
		return l.of(uuid).Uncorrected, l.enter("GetTotalEccErrors")
	}
	d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) {
		s := l.of(uuid)
		return 0, 0, s.RemapPending, s.RemapFailed, l.enter("GetRemappedRows")
	}
	throttle := func() (uint64, nvml.Return) { return l.of(uuid).Throttle, nvml.SUCCESS }
	d.GetCurrentClocksEventReasonsFunc = one(l, "GetCurrentClocksEventReasons", throttle)
	d.GetCurrentClocksThrottleReasonsFunc = one(l, "GetCurrentClocksThrottleReasons", throttle)
}
