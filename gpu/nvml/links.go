//go:build cgo

package nvml

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gitlab.com/berth-ci/berth/gpu"
)

// links tells how GPUs are connected. What cannot be read is no link: it only
// makes the choice of GPUs worse.
func links(cards []card) []gpu.Link {
	remote := make([]map[string]int, len(cards)) // NVLinks to each PCI address
	switched := make([]int, len(cards))          // NVLinks to anything that is no GPU
	known := map[string]bool{}
	for _, c := range cards {
		known[c.pci] = true
	}
	for i, c := range cards {
		remote[i] = map[string]int{}
		for link := range nvml.NVLINK_MAX_LINKS {
			state, ret := c.handle.GetNvLinkState(link)
			if ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.ERROR_INVALID_ARGUMENT {
				break // no more
			}
			if ret != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
				continue
			}
			pci, ret := c.handle.GetNvLinkRemotePciInfo(link)
			if at := busID(pci); ret == nvml.SUCCESS && known[at] {
				remote[i][at]++
			} else {
				switched[i]++
			}
		}
	}
	var all []gpu.Link
	for i, a := range cards {
		for j, b := range cards[:i] {
			l := gpu.Link{A: b.uuid, B: a.uuid, NVLinks: remote[i][b.pci] + min(switched[i], switched[j])}
			if level, ret := b.handle.GetTopologyCommonAncestor(a.handle); ret == nvml.SUCCESS {
				l.Path = paths[level]
			}
			all = append(all, l)
		}
	}
	return all
}

var paths = map[nvml.GpuTopologyLevel]gpu.Path{
	nvml.TOPOLOGY_INTERNAL:   gpu.PathBoard,
	nvml.TOPOLOGY_SINGLE:     gpu.PathSwitch,
	nvml.TOPOLOGY_MULTIPLE:   gpu.PathSwitches,
	nvml.TOPOLOGY_HOSTBRIDGE: gpu.PathHostBridge,
	nvml.TOPOLOGY_NODE:       gpu.PathNode,
	nvml.TOPOLOGY_SYSTEM:     gpu.PathSystem,
}
