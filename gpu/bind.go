package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// bind writes what the devices of a lease are to a container. nodes are all
// that the host has.
func bind(i *Inventory, nodes []oci.LinuxDevice, uuids, capabilities []string) (*api.GPUs, error) {
	g := &api.GPUs{Devices: uuids}
	spec := &oci.Spec{Process: &oci.Process{}, Linux: &oci.Linux{}}
	edits := []specs.ContainerEdits{limit(i.Edits, capabilities)}
	instances := false
	for _, uuid := range uuids {
		d, ok := i.find(uuid)
		if !ok {
			return nil, fmt.Errorf("bind GPU %s: it is gone: %w", uuid, errdefs.ErrUnavailable)
		}
		edits = append(edits, d.Edits)
		instances = instances || d.MIG != ""
	}
	for _, e := range edits {
		e = owned(e)
		if err := (&cdi.ContainerEdits{ContainerEdits: &e}).Apply(spec); err != nil {
			return nil, fmt.Errorf("bind GPUs %s: %w", strings.Join(uuids, ", "), err)
		}
	}
	g.Env = slices.DeleteFunc(spec.Process.Env, func(entry string) bool { return strings.HasPrefix(entry, "NVIDIA_VISIBLE_DEVICES=") })
	g.Env = append(g.Env, "CUDA_VISIBLE_DEVICES="+cudaDevices(uuids, instances))
	mergeHooks(spec.Hooks)
	g.Nodes, g.Mounts, g.Hooks, g.GIDs = spec.Linux.Devices, spec.Mounts, spec.Hooks, spec.Process.User.AdditionalGids
	g.Withheld = slices.DeleteFunc(nodes, func(n oci.LinuxDevice) bool {
		return slices.ContainsFunc(g.Nodes, func(o oci.LinuxDevice) bool { return o.Major == n.Major && o.Minor == n.Minor })
	})
	return g, nil
}

// HooksCommand has berth-gpu do several hooks, with HooksSeparator before each.
const (
	HooksCommand   = "hooks"
	HooksSeparator = "--"
)

// mergeHooks makes one of the hooks that berth-gpu does before a container
// starts: "berth-gpu hooks -- create-symlinks … -- update-ldcache …".
func mergeHooks(h *oci.Hooks) {
	if h == nil || len(h.CreateContainer) < 2 {
		return
	}
	merged := h.CreateContainer[0]
	merged.Args = []string{merged.Args[0], HooksCommand}
	for _, one := range h.CreateContainer {
		if one.Path != merged.Path || slices.Contains(one.Args, HooksSeparator) {
			return // not ours
		}
		merged.Args = append(append(merged.Args, HooksSeparator), one.Args[1:]...)
	}
	h.CreateContainer = []oci.Hook{merged}
}

// cudaDevices is what CUDA_VISIBLE_DEVICES holds. GPUs are counted as the
// container sees them, since programs read numbers there; of MIG instances
// CUDA knows no numbers.
func cudaDevices(uuids []string, instances bool) string {
	if instances {
		return strings.Join(uuids, ",")
	}
	numbers := make([]string, len(uuids))
	for i := range uuids {
		numbers[i] = strconv.Itoa(i)
	}
	return strings.Join(numbers, ",")
}

// owned copies what Apply fills in.
func owned(e specs.ContainerEdits) specs.ContainerEdits {
	nodes := make([]*specs.DeviceNode, len(e.DeviceNodes))
	for i, n := range e.DeviceNodes {
		node := *n
		nodes[i] = &node
	}
	e.DeviceNodes = nodes
	return e
}

// nodesOf lists the device nodes of GPUs and of MIG that there are below a
// directory, whoever may have them, and whether or not the driver answers.
// Those that every GPU needs, such as nvidiactl, are harmless without one.
func nodesOf(root string) (nodes []oci.LinuxDevice) {
	for _, pattern := range []string{"dev/nvidia[0-9]*", "dev/nvidia-caps/nvidia-cap*"} {
		paths, _ := filepath.Glob(filepath.Join(root, pattern)) // a good pattern
		for _, path := range paths {
			var s unix.Stat_t
			if unix.Lstat(path, &s) == nil && s.Mode&unix.S_IFMT == unix.S_IFCHR {
				nodes = append(nodes, oci.LinuxDevice{Path: path, Type: "c", Major: int64(unix.Major(s.Rdev)), Minor: int64(unix.Minor(s.Rdev))})
			}
		}
	}
	return nodes
}

// Within finds what a container that a job starts by its docker endpoint may
// have: count devices of the job's, -1 for all, or those that are named. Names
// are UUIDs, places in the lease, or the same as CDI names: nvidia.com/gpu=0.
// What is not the job's does not exist for it.
func Within(lease []string, count int, names []string) ([]string, error) {
	if len(names) == 0 {
		if count < 0 {
			count = len(lease)
		}
		if count > len(lease) {
			return nil, executor.Failf("%d GPUs: the job has %d: ask for more by %s", count, len(lease), CountVariable)
		}
		return lease[:count], nil
	}
	var found []string
	for _, name := range names {
		short := strings.TrimPrefix(name, "nvidia.com/gpu=")
		place, err := strconv.Atoi(short)
		switch {
		case short == "all":
			found = append(found, lease...)
		case slices.Contains(lease, short):
			found = append(found, short)
		case err == nil && place >= 0 && place < len(lease):
			found = append(found, lease[place])
		default:
			return nil, executor.Failf("GPU %q is not one of the job's: it has %s", name, listed(lease))
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

func listed(lease []string) string {
	if len(lease) == 0 {
		return "none; " + CountVariable + " asks for some"
	}
	return strings.Join(lease, ", ")
}

// cdiKind is the vendor and class of the names by which a docker daemon of
// the node gives a job's devices to a container.
const cdiKind = "berth/gpu"

// CDIName is the name of a job's device for the node's own docker daemon,
// which reads the specs in Keeper's directory. Jobs never see it.
func CDIName(job, uuid string) string { return cdiKind + "=" + job + "." + uuid }

// writeCDI writes the spec of a job's devices.
func writeCDI(dir, job string, i *Inventory, uuids, capabilities []string) error {
	s := specs.Spec{Version: "0.6.0", Kind: cdiKind, ContainerEdits: limit(i.Edits, capabilities)}
	for _, uuid := range uuids {
		d, _ := i.find(uuid)
		s.Devices = append(s.Devices, specs.Device{Name: job + "." + uuid, ContainerEdits: d.Edits})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write CDI spec of job %s: %w", job, err)
	}
	file := cdiFile(dir, job)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(file+".next", b, 0o600)); err != nil {
		return fmt.Errorf("write CDI spec of job %s: %w", job, err)
	}
	return os.Rename(file+".next", file)
}

func removeCDI(dir, job string) error {
	if err := os.Remove(cdiFile(dir, job)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove CDI spec: %w", err)
	}
	return nil
}

func cdiFile(dir, job string) string { return filepath.Join(dir, job+".json") }
