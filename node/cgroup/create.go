package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/rlimit"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/executor"
)

// period of the CPU quota, in microseconds; it is the kernel's default.
const period uint64 = 100_000

// Create makes a job's cgroup with its limits, and what is missing on the
// way to it. Swap counts as memory. It undoes nothing: Remove does.
func (t *Tree) Create(path string, l executor.Limits) error {
	if err := valid(path); err != nil {
		return err
	}
	create := t.create1
	if t.unified {
		create = t.create2
	}
	if err := create(path, l); err != nil {
		return fmt.Errorf("create cgroup %s: %w", path, err)
	}
	return nil
}

func (t *Tree) create1(path string, l executor.Limits) error {
	r := &specs.LinuxResources{}
	if l.CPUs > 0 {
		p, q := period, quota(l.CPUs)
		r.CPU = &specs.LinuxCPU{Quota: &q, Period: &p}
	}
	if l.Memory > 0 {
		bytes := int64(l.Memory)
		r.Memory = &specs.LinuxMemory{Limit: &bytes}
		if exists(t.v1["memory"], "memory.memsw.limit_in_bytes") {
			r.Memory.Swap = &bytes
		}
	}
	if l.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	_, err := cgroup1.New(cgroup1.StaticPath(path), r)
	return err
}

func (t *Tree) create2(path string, l executor.Limits) error {
	// All controllers are handed down, limits or not: they are what counts
	// memory and OOM kills, too.
	manager, err := cgroup2.Load("/", cgroup2.WithMountpoint(t.v2))
	if err != nil {
		return err
	}
	available, err := manager.RootControllers()
	if err != nil {
		return err
	}
	has := func(c string) bool { return slices.Contains(available, c) }
	r := &cgroup2.Resources{}
	if has("cpu") {
		r.CPU = &cgroup2.CPU{}
	}
	if has("memory") {
		r.Memory = &cgroup2.Memory{}
	}
	if has("pids") {
		r.Pids = &cgroup2.Pids{}
	}
	if has("io") {
		r.IO = &cgroup2.IO{}
	}
	if manager, err = cgroup2.NewManager(t.v2, path, r); err != nil {
		return err
	}
	limits := &cgroup2.Resources{}
	if l.CPUs > 0 {
		q, p := quota(l.CPUs), period
		limits.CPU = &cgroup2.CPU{Max: cgroup2.NewCPUMax(&q, &p)}
	}
	if l.Memory > 0 {
		bytes, none := int64(l.Memory), int64(0)
		limits.Memory = &cgroup2.Memory{Max: &bytes}
		if exists(t.v2, path, "memory.swap.max") {
			limits.Memory.Swap = &none
		}
	}
	if l.PIDs > 0 {
		limits.Pids = &cgroup2.Pids{Max: l.PIDs}
	}
	return manager.Update(limits)
}

// Withhold keeps everything in a cgroup, whatever containers it is in and
// however privileged they are, from opening devices. It comes before there is
// a cgroup below: v1 does not let a cgroup that has any take more back.
func (t *Tree) Withhold(path string, devices []specs.LinuxDevice) error {
	if len(devices) == 0 {
		return nil
	}
	if err := valid(path); err != nil {
		return err
	}
	withhold := t.withhold1
	if t.unified {
		withhold = t.withhold2
	}
	if err := withhold(path, devices); err != nil {
		return fmt.Errorf("withhold devices from cgroup %s: %w", path, err)
	}
	return nil
}

// open is what is withheld. Making nodes is not: under v1, containers could
// then not be allowed to make those of any other device either.
const open = "rw"

func (t *Tree) withhold1(path string, devices []specs.LinuxDevice) error {
	mount, ok := t.v1["devices"]
	if !ok {
		return fmt.Errorf("the host has no v1 hierarchy for devices: %w", errdefs.ErrNotImplemented)
	}
	for _, d := range devices {
		rule := fmt.Sprintf("%s %d:%d %s", d.Type, d.Major, d.Minor, open)
		if err := os.WriteFile(filepath.Join(mount, path, "devices.deny"), []byte(rule), 0); err != nil {
			return err
		}
	}
	return nil
}

// withhold2 adds a program to those that containers have; the kernel asks all
// of them. It goes with the cgroup.
func (t *Tree) withhold2(path string, devices []specs.LinuxDevice) (err error) {
	all := int64(-1)
	rules := []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Major: &all, Minor: &all, Access: "rwm"}}
	for _, d := range devices {
		rules = append(rules, specs.LinuxDeviceCgroup{Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: open})
	}
	program, license, err := cgroup2.DeviceFilter(rules)
	if err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil { // which holds programs on kernels before 5.11
		return err
	}
	dir, err := os.Open(filepath.Join(t.v2, path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	_, err = cgroup2.LoadAttachCgroupDeviceFilter(program, license, int(dir.Fd()))
	return err
}

// quota is how long the job may run in each period, all CPUs added up. The
// kernel accepts no less than a millisecond.
func quota(c executor.CPUs) int64 { return max(int64(float64(c)*float64(period)), 1000) }

func exists(elem ...string) bool {
	_, err := os.Stat(filepath.Join(elem...))
	return err == nil
}
