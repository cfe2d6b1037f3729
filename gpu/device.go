// Package gpu gives jobs GPUs: what they may ask for, what the node has, who
// holds what, and whether it is in order.
//
// It knows NVIDIA's library by the Driver interface alone. Package gpu/nvml is
// the real one; it needs cgo and runs in a process of its own, berth-gpu, that
// package gpu/process speaks with. So a driver that hangs or crashes takes
// nothing down, a new one is picked up by starting the process again, and
// berthd stays a static program.
package gpu

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tags.cncf.io/container-device-interface/specs-go"

	"gitlab.com/berth-ci/berth/executor"
)

// Driver is what is known of the node's GPUs, and how. A call that the driver
// does not answer fails with errdefs.ErrUnavailable, all calls on a node
// without one with errdefs.ErrNotFound.
type Driver interface {
	// Inventory tells what there is.
	Inventory(ctx context.Context) (*Inventory, error)
	// Read tells how devices are. What cannot be read of one is in its
	// reading; the others are not affected.
	Read(ctx context.Context, uuids []string) (map[string]Reading, error)
	// Events waits a while for what happens to the devices.
	Events(ctx context.Context) ([]Event, error)
}

// Inventory is what the node has.
type Inventory struct {
	// Driver and CUDA are versions.
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"`
	// Devices can be had by jobs, one by one.
	Devices []Device `json:"devices"`
	// Links tell how GPUs are connected, each pair once.
	Links []Link `json:"links,omitempty"`
	// Edits are made to a container with any device.
	Edits specs.ContainerEdits `json:"edits"`
	// Faults tell of GPUs that there are but that could not be read.
	Faults []string `json:"faults,omitempty"`
}

// Device is a whole GPU, or an instance that MIG has cut from one.
type Device struct {
	UUID  string `json:"uuid"`
	Index int    `json:"index"` // of the GPU
	Model string `json:"model"`
	// Memory of the device.
	Memory executor.Bytes `json:"memory"`
	// MIG is the profile of an instance, such as 1g.5gb; GPU is the UUID of
	// the one that it was cut from.
	MIG string `json:"mig,omitempty"`
	GPU string `json:"gpu"`
	// GPUInstance and ComputeInstance are MIG's numbers for an instance.
	GPUInstance     int `json:"gpu_instance,omitempty"`
	ComputeInstance int `json:"compute_instance,omitempty"`

	PCI  string `json:"pci,omitempty"`
	NUMA int    `json:"numa"` // -1 if unknown
	// CPUs are near the device, as in 0-15,32-47; empty if unknown.
	CPUs string `json:"cpus,omitempty"`
	// Persistence tells whether the driver stays when nothing uses the GPU; nil
	// if that is not known.
	Persistence *bool `json:"persistence,omitempty"`
	// Unusable says why no job can have it as it is.
	Unusable string `json:"unusable,omitempty"`
	// Unread lists what should have been told but was not.
	Unread []string `json:"unread,omitempty"`
	// Edits are made to a container with this device.
	Edits specs.ContainerEdits `json:"edits"`
}

// Name is the model, and the profile of an instance.
func (d Device) Name() string {
	if d.MIG != "" {
		return d.Model + " MIG " + d.MIG
	}
	return d.Model
}

// Path is how two GPUs reach each other without NVLink, nearest first.
type Path int

// Paths by PCI Express.
const (
	PathUnknown Path = iota
	PathBoard
	PathSwitch
	PathSwitches
	PathHostBridge
	PathNode
	PathSystem
)

func (p Path) String() string {
	return [...]string{"unknown", "board", "switch", "switches", "host bridge", "NUMA node", "system"}[p]
}

// Link is the connection of two GPUs, by UUID.
type Link struct {
	A string `json:"a"`
	B string `json:"b"`
	// NVLinks between them, or of the lesser of them to the switch that both
	// are on.
	NVLinks int  `json:"nvlinks,omitempty"`
	Path    Path `json:"path"`
}

// Reading is how a device is. Pointers are nil for what it does not tell.
type Reading struct {
	At          time.Time      `json:"at"`
	Utilisation *int           `json:"utilisation,omitempty"` // percent
	MemoryUsed  executor.Bytes `json:"memory_used"`
	// Energy since the driver was loaded, in millijoules.
	Energy    *uint64   `json:"energy,omitempty"`
	Processes []Process `json:"processes,omitempty"`
	// Uncorrected counts ECC errors since the driver was loaded.
	Uncorrected uint64 `json:"uncorrected,omitempty"`
	// RemapPending wants a reset, RemapFailed another GPU.
	RemapPending bool `json:"remap_pending,omitempty"`
	RemapFailed  bool `json:"remap_failed,omitempty"`
	// Throttled says why it runs slower than it could.
	Throttled []string `json:"throttled,omitempty"`
	// Lost says why the device cannot be spoken with.
	Lost string `json:"lost,omitempty"`
	// Unread lists what should have been told but was not.
	Unread []string `json:"unread,omitempty"`
}

// Process computes on a device.
type Process struct {
	PID    int            `json:"pid"`
	Memory executor.Bytes `json:"memory,omitempty"`
}

// Event is what the driver reports. An XID is NVIDIA's number of a fault.
type Event struct {
	GPU string `json:"gpu"` // UUID
	XID uint64 `json:"xid"`
	// GPUInstance and ComputeInstance are of the MIG instance concerned; -1
	// for all.
	GPUInstance     int `json:"gpu_instance"`
	ComputeInstance int `json:"compute_instance"`
}

// concerns tells whether an event happened to a device.
func (e Event) concerns(d Device) bool {
	if e.GPU != d.GPU {
		return false
	}
	return d.MIG == "" || e.GPUInstance < 0 ||
		e.GPUInstance == d.GPUInstance && (e.ComputeInstance < 0 || e.ComputeInstance == d.ComputeInstance)
}

// Summary counts what there is: "8 × NVIDIA A100-SXM4-40GB (40GiB)".
func (i *Inventory) Summary() string {
	if i == nil || len(i.Devices) == 0 {
		return "no GPU"
	}
	counts := map[string]int{}
	for _, d := range i.Devices {
		name := fmt.Sprintf("%s (%v)", d.Name(), d.Memory)
		if d.Unusable != "" {
			name = fmt.Sprintf("%s, which is not to be had: %s", d.Name(), d.Unusable)
		}
		counts[name]++
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d × %s", counts[name], name))
	}
	return strings.Join(parts, ", ")
}

// find gives a device by UUID.
func (i *Inventory) find(uuid string) (Device, bool) {
	if i != nil {
		for _, d := range i.Devices {
			if d.UUID == uuid {
				return d, true
			}
		}
	}
	return Device{}, false
}
