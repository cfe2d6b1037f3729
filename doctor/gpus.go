package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
)

// gpuName is what findings on GPUs are called that concern all of them.
const gpuName = "GPUs"

// nvidia is what a host has of NVIDIA's, as its kernel and files tell.
type nvidia struct {
	// Cards on the PCI bus; Nouveau has some of them.
	Cards   int
	Nouveau bool
	// Module is the version of the kernel's module, if it is loaded; Library
	// that of the driver's library.
	Module, Library string
	// Missing are device nodes.
	Missing []string
}

// lookForNVIDIA looks below root, which is / but in tests, and for the
// driver's files below another.
func lookForNVIDIA(root, driver string) (n nvidia) {
	read := func(path ...string) string {
		b, _ := os.ReadFile(filepath.Join(path...))
		return strings.TrimSpace(string(b))
	}
	devices, _ := filepath.Glob(filepath.Join(root, "sys/bus/pci/devices/*"))
	for _, dir := range devices {
		// Displays and accelerators, which some cards are instead.
		class := read(dir, "class")
		if read(dir, "vendor") != "0x10de" || !strings.HasPrefix(class, "0x03") && !strings.HasPrefix(class, "0x12") {
			continue
		}
		n.Cards++
		bound, _ := os.Readlink(filepath.Join(dir, "driver"))
		n.Nouveau = n.Nouveau || filepath.Base(bound) == "nouveau"
	}
	if n.Module = read(root, "sys/module/nvidia/version"); n.Module == "" {
		return n
	}
	for _, name := range []string{"nvidiactl", "nvidia-uvm"} {
		path := filepath.Join(driver, "dev", name)
		if s, err := os.Stat(path); err != nil || s.Mode()&fs.ModeCharDevice == 0 {
			n.Missing = append(n.Missing, path)
		}
	}
	for _, pattern := range []string{"usr/lib*/libnvidia-ml.so.*.*", "usr/lib*/*/libnvidia-ml.so.*.*"} {
		files, _ := filepath.Glob(filepath.Join(driver, pattern))
		for _, file := range files {
			_, version, _ := strings.Cut(filepath.Base(file), ".so.")
			if n.Library == "" || version == n.Module {
				n.Library = version
			}
		}
	}
	return n
}

// gpus looks what there is of NVIDIA's, what its driver says and which GPUs
// jobs do not get, and why. Most hosts have none, which is no fault.
func (n *node) gpus(ctx context.Context) []Check {
	host := lookForNVIDIA("/", n.config.GPU.DriverRoot)
	var list *api.GPUList
	if n.berthd != nil {
		ctx, cancel := context.WithTimeout(ctx, n.Timeout)
		defer cancel()
		var err error
		if list, err = api.NewClient(n.Socket).GPUs(ctx); err != nil {
			return []Check{warn(gpuName, "Look at what it logs: journalctl -u berthd.", "berthd does not tell which there are: %v", err)}
		}
	}
	if host.Cards == 0 && host.Module == "" && (list == nil || len(list.GPUs) == 0) {
		return []Check{ok(gpuName, "this host has none of NVIDIA's")}
	}
	checks := checkNVIDIA(host)
	if list == nil && host.Module != "" {
		// The next berthd will ask in this way.
		var err error
		if list, err = n.askBerthGPU(ctx); err != nil {
			return append(checks, warn("berth-gpu", "Install it with berth (make berth-gpu install), or name it by gpu.program.", "%v", err))
		}
	}
	if list != nil {
		checks = append(checks, checkGPUs(list)...)
	}
	return checks
}

// checkNVIDIA says what keeps the driver from working.
func checkNVIDIA(h nvidia) (checks []Check) {
	const name = "NVIDIA driver"
	switch {
	case h.Module == "" && h.Nouveau:
		return []Check{warn(name, "Install NVIDIA's driver, keep nouveau from being loaded (blacklist nouveau), and boot.", "%d GPUs, but nouveau has them, with which nothing computes", h.Cards)}
	case h.Module == "" && h.Cards > 0:
		return []Check{warn(name, "Install NVIDIA's driver, and load it: modprobe nvidia.", "%d GPUs, but no driver: its kernel module is not loaded", h.Cards)}
	case h.Module == "":
		return nil // of a driver that only berthd has
	case h.Library == "":
		checks = append(checks, warn(name, "Install the driver's libraries (libnvidia-ml, libcuda), or name where they are by gpu.driver_root.", "the kernel's module is version %s, but its libraries are not to be found", h.Module))
	case h.Library != h.Module:
		checks = append(checks, warn(name, "The driver was upgraded: boot, or drain the node, stop berthd and all else that uses it, and load the new module.", "the kernel's module is version %s, the libraries are %s", h.Module, h.Library))
	default:
		checks = append(checks, ok(name, "version %s", h.Module))
	}
	if len(h.Missing) > 0 {
		checks = append(checks, warn("GPU device nodes", "Have them made: nvidia-modprobe -u -c 0, at each boot; nvidia-persistenced does it, too.", "missing: %s", strings.Join(h.Missing, ", ")))
	}
	return checks
}

// persistence is what a remedy says of it; Berth changes no settings.
const persistence = "Have the driver stay: systemctl enable --now nvidia-persistenced."

// checkGPUs goes through what berthd, or berth-gpu, says that there is.
func checkGPUs(list *api.GPUList) (checks []Check) {
	if list.Reason != "" {
		checks = append(checks, warn(gpuName, "Mend it, and berthd finds them within a minute; until then jobs that ask for GPUs fail.", "no job can have any: %s", list.Reason))
	}
	for _, fault := range list.Faults {
		checks = append(checks, warn(gpuName, "Look for what the driver says of it: dmesg | grep NVRM.", "%s", fault))
	}
	well, forgetful := 0, map[string]bool{}
	for _, g := range list.GPUs {
		name := fmt.Sprintf("GPU %d", g.Index)
		what := fmt.Sprintf("%s (%s)", cmp.Or(g.Model, "a GPU"), g.UUID)
		if g.Persistence != nil && !*g.Persistence {
			forgetful[g.GPU] = true
		}
		switch q := g.Quarantine; {
		case q != nil:
			checks = append(checks, warn(name, next(g), "%s is in quarantine since %s: %s", what, q.Since.Format("2006-01-02 15:04"), q.Reason))
		case g.State == api.GPUUnusable:
			checks = append(checks, warn(name, "Do what it says: berthd finds it within half a minute.", "%s is not to be had: %s", what, g.Reason))
		case g.State == api.GPUGone:
			checks = append(checks, warn("GPU", "Look for what the driver says of it: dmesg | grep NVRM.", "%s is gone, but a job has it", what))
		default:
			well++
		}
	}
	if n := len(forgetful); n > 0 {
		checks = append(checks, warn("persistence mode", persistence, "off for %d GPUs: the driver forgets them when nothing uses them, and each job waits until they have started", n))
	}
	if well > 0 || len(checks) == 0 {
		checks = append(checks, ok(gpuName, "%d of %d are in order; driver %s, CUDA %s", well, len(list.GPUs), list.Driver, list.CUDA))
	}
	return checks
}

// next is what to do about a quarantine.
func next(g api.GPU) string {
	switch g.Quarantine.Cause {
	case api.QuarantineLeftover:
		return "End what still uses it (nvidia-smi, fuser -v /dev/nvidia*); it returns by itself when nothing does. If that is at rest so: berth gpu release " + g.UUID + "."
	case api.QuarantineLost:
		return "Look for what the driver says of it (dmesg | grep NVRM), reset it or boot; it returns by itself when it answers and is well."
	case api.QuarantineMemory:
		return "Reset it when no job has it: nvidia-smi --gpu-reset -i " + g.GPU + "; it returns by itself when that has cured it, else have it replaced."
	case api.QuarantineXID:
		return "Look up the XID (https://docs.nvidia.com/deploy/xid-errors), and mend it; it returns with the next boot, or by berth gpu release " + g.UUID + "."
	}
	return "Somebody decided so; it returns by berth gpu release " + g.UUID + "."
}

// askBerthGPU starts berth-gpu and asks it once what there is, as berthd does.
func (n *node) askBerthGPU(ctx context.Context) (*api.GPUList, error) {
	ctx, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	program := cmp.Or(n.config.GPU.Program, programs.LocateGPU(n.config.Runtime.Path))
	cmd := exec.CommandContext(ctx, program, "serve", "--root", n.config.GPU.DriverRoot)
	stdin, err1 := cmd.StdinPipe() // when it ends, so does the program
	stdout, err2 := cmd.StdoutPipe()
	var said strings.Builder
	cmd.Stderr = &said
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	var answer struct {
		Error  any
		Result struct {
			Error string
			Stock struct {
				Driver, CUDA string
				Faults       []string
				Devices      []struct {
					UUID, Model, MIG, GPU, Unusable string
					Index                           int
					Persistence                     *bool
				}
			}
		}
	}
	_, err := io.WriteString(stdin, `{"method":"GPU.Inventory","params":[{}],"id":0}`+"\n")
	if err == nil {
		err = json.NewDecoder(stdout).Decode(&answer)
	}
	_ = stdin.Close()
	if ended := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s does not answer: %w", program, cmp.Or(context.Cause(ctx), ended, err, errors.New(said.String())))
	}
	if answer.Error != nil {
		return nil, fmt.Errorf("%s does not speak as berthd does: %v", program, answer.Error)
	}
	stock := answer.Result.Stock
	list := &api.GPUList{Driver: stock.Driver, CUDA: stock.CUDA, Faults: stock.Faults, Reason: answer.Result.Error}
	for _, d := range stock.Devices {
		g := api.GPU{UUID: d.UUID, Index: d.Index, Model: d.Model, MIG: d.MIG, GPU: d.GPU, State: api.GPUFree, Persistence: d.Persistence}
		if d.Unusable != "" {
			g.State, g.Reason = api.GPUUnusable, d.Unusable
		}
		list.GPUs = append(list.GPUs, g)
	}
	return list, nil
}
