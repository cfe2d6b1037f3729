package gpu

import (
	"fmt"

	"gitlab.com/berth-ci/berth/executor"
)

const gib = executor.Bytes(1 << 30)

// board is a DGX-like node: n GPUs, two NUMA nodes, NVLink all over.
func board(n int) *Inventory {
	i := &Inventory{Driver: "550.54.15", CUDA: "12.4"}
	for g := range n {
		uuid := fmt.Sprintf("GPU-%d", g)
		i.Devices = append(i.Devices, Device{
			UUID: uuid, GPU: uuid, Index: g, Model: "NVIDIA A100-SXM4-40GB", Memory: 40 * gib,
			NUMA: g / 4, CPUs: fmt.Sprintf("%d-%d", g/4*16, g/4*16+15),
		})
		for other := range g {
			i.Links = append(i.Links, Link{A: fmt.Sprintf("GPU-%d", other), B: uuid, NVLinks: 12, Path: PathSystem})
		}
	}
	return i
}

// slice cuts a GPU of the inventory into instances of a profile.
func slice(i *Inventory, gpu, n int, profile string, memory executor.Bytes) {
	uuid := fmt.Sprintf("GPU-%d", gpu)
	for at, d := range i.Devices {
		if d.UUID != uuid {
			continue
		}
		var instances []Device
		for m := range n {
			instance := d
			instance.UUID = fmt.Sprintf("MIG-%d-%d", gpu, m)
			instance.MIG, instance.Memory, instance.GPUInstance = profile, memory, m+1
			instances = append(instances, instance)
		}
		i.Devices = append(append(i.Devices[:at:at], instances...), i.Devices[at+1:]...)
		return
	}
}

// link connects two GPUs of the inventory in another way.
func link(i *Inventory, a, b, nvlinks int, path Path) {
	l := Link{A: fmt.Sprintf("GPU-%d", a), B: fmt.Sprintf("GPU-%d", b), NVLinks: nvlinks, Path: path}
	for at := range i.Links {
		if pair(i.Links[at].A, i.Links[at].B) == pair(l.A, l.B) {
			i.Links[at] = l
			return
		}
	}
	i.Links = append(i.Links, l)
}

var anything = executor.GPUs{Models: []string{"*"}, Wait: executor.Duration(3600e9)}

// claim is the n-th job's.
func claim(n int, r Request) *Claim {
	return &Claim{
		Job:     executor.Identity{ID: int64(n), ProjectID: 1, Project: "group/project"},
		Profile: "default", Settings: anything, Request: r,
	}
}
