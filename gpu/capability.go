package gpu

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"tags.cncf.io/container-device-interface/specs-go"

	"gitlab.com/berth-ci/berth/executor"
)

// CapabilitiesVariable is the job variable that asks for more of the driver
// than what computing needs.
const CapabilitiesVariable = "BERTH_GPU_CAPABILITIES"

// Capabilities of the driver, as NVIDIA_DRIVER_CAPABILITIES names them.
const (
	CapabilityCompute  = "compute"
	CapabilityUtility  = "utility"
	CapabilityGraphics = "graphics"
	CapabilityVideo    = "video"
)

var (
	capabilities        = []string{CapabilityCompute, CapabilityUtility, CapabilityGraphics, CapabilityVideo}
	defaultCapabilities = []string{CapabilityCompute, CapabilityUtility}
)

// capabilityFiles are those that are not graphics, by what names begin with,
// as NVIDIA's libnvidia-container sorts them.
var capabilityFiles = map[string][]string{
	CapabilityCompute: {
		"libcuda.", "libcudadebugger.", "libnvidia-opencl.", "libnvidia-gpucomp.", "libnvidia-ptxjitcompiler.",
		"libnvidia-fatbinaryloader.", "libnvidia-allocator.", "libnvidia-compiler.", "libnvidia-nvvm", "libnvidia-pkcs11",
		"libnvidia-tileiras.", "nvidia-cuda-mps-", "gsp", "ucodes", "nvidia-fabricmanager", "nvidia-mps", "nvidia-imex",
	},
	CapabilityUtility: {
		"libnvidia-ml.", "libnvidia-cfg.", "libnvidia-nscq.", "libnvidia-sandboxutils.", "nvidia-smi", "nvidia-debugdump",
		"nvidia-persistenced",
	},
	CapabilityVideo: {"libnvcuvid.", "libnvidia-encode.", "libnvidia-opticalflow.", "libnvidia-vksc", "libvdpau_nvidia."},
}

// CapabilityOf sorts a file of the driver.
func CapabilityOf(file string) string {
	base := path.Base(file)
	for capability, names := range capabilityFiles {
		for _, name := range names {
			if strings.HasPrefix(base, name) {
				return capability
			}
		}
	}
	return CapabilityGraphics
}

// parseCapabilities reads a list with commas; "all" is all.
func parseCapabilities(list string) ([]string, error) {
	var wanted []string
	for name := range strings.SplitSeq(list, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "all":
			return capabilities, nil
		case !slices.Contains(capabilities, name):
			return nil, fmt.Errorf("%q: expected some of %s, or all", name, strings.Join(capabilities, ", "))
		}
		wanted = append(wanted, name)
	}
	return wanted, nil
}

// limit leaves out of the driver's edits what was not asked for.
func limit(e specs.ContainerEdits, wanted []string) specs.ContainerEdits {
	has := func(file string) bool { return slices.Contains(wanted, CapabilityOf(file)) }
	limited := e
	limited.Mounts, limited.DeviceNodes, limited.Hooks = nil, nil, nil
	for _, m := range e.Mounts {
		if has(m.HostPath) {
			limited.Mounts = append(limited.Mounts, m)
		}
	}
	for _, n := range e.DeviceNodes {
		if path.Base(n.Path) != "nvidia-modeset" || slices.Contains(wanted, CapabilityGraphics) {
			limited.DeviceNodes = append(limited.DeviceNodes, n)
		}
	}
	for _, h := range e.Hooks {
		if h = limitLinks(h, has); h != nil {
			limited.Hooks = append(limited.Hooks, h)
		}
	}
	return limited
}

// limitLinks leaves out links to files that are not there: "--link
// TARGET::LINK" of the hook that makes them.
func limitLinks(h *specs.Hook, has func(string) bool) *specs.Hook {
	if !slices.Contains(h.Args, "create-symlinks") {
		return h
	}
	limited, links := *h, 0
	limited.Args = nil
	for i := 0; i < len(h.Args); i++ {
		if h.Args[i] == "--link" && i+1 < len(h.Args) {
			i++
			target, link, _ := strings.Cut(h.Args[i], "::")
			// A name without version is sorted by what it stands for.
			if !has(target) && !has(link) {
				continue
			}
			links++
			limited.Args = append(limited.Args, "--link", h.Args[i])
			continue
		}
		limited.Args = append(limited.Args, h.Args[i])
	}
	if links == 0 {
		return nil
	}
	return &limited
}

// capabilitiesOf reads what a job asks for.
func capabilitiesOf(variables map[string]string) ([]string, error) {
	list, ok := variables[CapabilitiesVariable]
	if !ok || list == "" {
		return defaultCapabilities, nil
	}
	wanted, err := parseCapabilities(list)
	if err != nil {
		return nil, executor.Failf("%s: %w", CapabilitiesVariable, err)
	}
	return wanted, nil
}
