//go:build cgo

package nvml

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
)

// card is a GPU in its slot.
type card struct {
	handle nvml.Device
	uuid   string
	pci    string
}

// card reads a GPU and what of it jobs can have: all of it, or the instances
// that MIG has cut it into.
func (d *Driver) card(index int, h nvml.Device) (card, []gpu.Device, error) {
	uuid, ret := h.GetUUID()
	if ret != nvml.SUCCESS {
		return card{}, nil, fmt.Errorf("read its UUID: %w", ret)
	}
	name, ret := h.GetName()
	if ret != nvml.SUCCESS {
		return card{}, nil, fmt.Errorf("read its model: %w", ret)
	}
	minor, ret := h.GetMinorNumber()
	if ret != nvml.SUCCESS {
		return card{}, nil, fmt.Errorf("read its minor number: %w", ret)
	}
	c := card{handle: h, uuid: uuid}
	whole := gpu.Device{UUID: uuid, GPU: uuid, Index: index, Model: name, NUMA: -1}
	if memory, ret := h.GetMemoryInfo(); told(ret, "memory", &whole.Unread) {
		whole.Memory = executor.Bytes(memory.Total)
	}
	if pci, ret := h.GetPciInfo(); told(ret, "PCI address", &whole.Unread) {
		c.pci = busID(pci)
		whole.PCI = c.pci
	}
	if node, ret := d.numaNode(h); told(ret, "NUMA node", &whole.Unread) {
		whole.NUMA = node
	} else if text, err := os.ReadFile(filepath.Join("/sys/bus/pci/devices", c.pci, "numa_node")); err == nil && c.pci != "" {
		whole.NUMA, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if mask, ret := h.GetCpuAffinity(cpus()); told(ret, "cpus", &whole.Unread) {
		whole.CPUs = cpuList(mask)
	}
	if mode, ret := h.GetPersistenceMode(); told(ret, "persistence mode", &whole.Unread) {
		on := mode == nvml.FEATURE_ENABLED
		whole.Persistence = &on
	}
	mode, _, ret := h.GetMigMode()
	switch {
	case ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE:
		return c, d.instances(h, whole, minor), nil
	case ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED && ret != nvml.ERROR_FUNCTION_NOT_FOUND:
		whole.Unusable = fmt.Sprintf("whether MIG is on cannot be read: %v", ret)
		return c, []gpu.Device{whole}, nil
	}
	var err error
	if whole.Edits, err = d.wholeEdits(uuid, minor); err != nil {
		whole.Unusable = err.Error()
	}
	return c, []gpu.Device{whole}, nil
}

// instances reads what MIG has cut a GPU into.
func (d *Driver) instances(h nvml.Device, whole gpu.Device, minor int) []gpu.Device {
	n, ret := h.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		whole.Unusable = fmt.Sprintf("MIG is on, and its instances cannot be counted: %v", ret)
		return []gpu.Device{whole}
	}
	var instances []gpu.Device
	for i := range n {
		m, ret := h.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT {
			continue // fewer than there could be
		}
		if ret != nvml.SUCCESS {
			whole.Unread = append(whole.Unread, fmt.Sprintf("instance %d: %v", i, ret))
			continue
		}
		instance, err := d.instance(m, whole, minor)
		if err != nil {
			whole.Unread = append(whole.Unread, fmt.Sprintf("instance %d: %v", i, err))
			continue
		}
		instances = append(instances, instance)
	}
	if len(instances) == 0 {
		whole.Unusable = "MIG is on, and it has no instances"
		return []gpu.Device{whole}
	}
	for i := range instances {
		instances[i].Unread = slices.Concat(whole.Unread, instances[i].Unread)
	}
	return instances
}

func (d *Driver) instance(m nvml.Device, whole gpu.Device, minor int) (gpu.Device, error) {
	i := whole
	i.Unread = nil
	var ret nvml.Return
	if i.UUID, ret = m.GetUUID(); ret != nvml.SUCCESS {
		return i, fmt.Errorf("read its UUID: %w", ret)
	}
	if i.GPUInstance, ret = m.GetGpuInstanceId(); ret != nvml.SUCCESS {
		return i, fmt.Errorf("read its GPU instance: %w", ret)
	}
	if i.ComputeInstance, ret = m.GetComputeInstanceId(); ret != nvml.SUCCESS {
		return i, fmt.Errorf("read its compute instance: %w", ret)
	}
	name, ret := m.GetName() // "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
	if ret != nvml.SUCCESS {
		return i, fmt.Errorf("read its profile: %w", ret)
	}
	var ok bool
	if _, i.MIG, ok = strings.Cut(name, " MIG "); !ok {
		return i, fmt.Errorf("read its profile: %q names none", name)
	}
	memory, ret := m.GetMemoryInfo()
	i.Memory = 0
	if told(ret, "memory", &i.Unread) {
		i.Memory = executor.Bytes(memory.Total)
	}
	var err error
	if i.Edits, err = d.instanceEdits(minor, i.GPUInstance, i.ComputeInstance); err != nil {
		i.Unusable = err.Error()
	}
	return i, nil
}

// busID writes a PCI address as the kernel does: 0000:07:00.0.
func busID(p nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", p.Domain, p.Bus, p.Device)
}

// cpus is how many cpus the machine can have.
func cpus() int {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 1024
	}
	_, last, ranged := strings.Cut(strings.TrimSpace(string(text)), "-")
	n, err := strconv.Atoi(last)
	if !ranged || err != nil {
		return 64
	}
	return n + 1
}

// cpuList writes a mask as the kernel writes lists: 0-15,32-47.
func cpuList(mask []uint) string {
	var spans []string
	first := -1
	for cpu := 0; cpu <= len(mask)*bits.UintSize; cpu++ {
		set := cpu < len(mask)*bits.UintSize && mask[cpu/bits.UintSize]&(1<<(cpu%bits.UintSize)) != 0
		switch {
		case set && first < 0:
			first = cpu
		case !set && first == cpu-1 && first >= 0:
			spans, first = append(spans, strconv.Itoa(first)), -1
		case !set && first >= 0:
			spans, first = append(spans, fmt.Sprintf("%d-%d", first, cpu-1)), -1
		}
	}
	return strings.Join(spans, ",")
}
