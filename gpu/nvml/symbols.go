//go:build cgo

package nvml

import (
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"
)

// required are the functions of NVIDIA's library that each driver since 450
// has, the first for A100s. Calling one that is not there ends the process,
// so newer ones are looked up before.
var required = []string{
	"nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion",
	"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID",
	"nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetMinorNumber", "nvmlDeviceGetPciInfo", "nvmlDeviceGetCpuAffinity",
	"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetUtilizationRates",
	"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows",
	"nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetPersistenceMode",
	"nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkRemotePciInfo",
	"nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceIsMigDeviceHandle",
	"nvmlDeviceGetDeviceHandleFromMigDeviceHandle", "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId",
	"nvmlEventSetCreate", "nvmlEventSetWait", "nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents",
}

// has tells whether the library has a function.
func (d *Driver) has(symbol string) bool { return d.lib.Extensions().LookupSymbol(symbol) == nil }

// checkAge refuses a library without the functions that are needed.
func (d *Driver) checkAge() error {
	for _, symbol := range required {
		if !d.has(symbol) {
			return fmt.Errorf("the NVIDIA driver is too old: its library has no %s; 450 or newer is needed: %w", symbol, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// numaNode is one of the newer functions (530).
func (d *Driver) numaNode(h nvml.Device) (int, nvml.Return) {
	if !d.has("nvmlDeviceGetNumaNodeId") {
		return -1, nvml.ERROR_FUNCTION_NOT_FOUND
	}
	return h.GetNumaNodeId()
}

// throttleReasons has a new name since 535.
func (d *Driver) throttleReasons(h nvml.Device) (uint64, nvml.Return) {
	if !d.has("nvmlDeviceGetCurrentClocksEventReasons") {
		return h.GetCurrentClocksThrottleReasons()
	}
	return h.GetCurrentClocksEventReasons()
}
