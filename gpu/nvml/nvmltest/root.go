//go:build cgo

// Package nvmltest stands in for NVIDIA's library, driver and GPUs in tests:
// go-nvml's mock of a DGX A100, completed by what Berth asks, with faults to
// order, and the files of a driver that does nothing.
package nvmltest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Version of the driver that is stood in for.
const Version = "550.54.15"

// Major numbers of NVIDIA's device nodes. That of the capabilities is given
// out when the driver is loaded.
const (
	Major    = 195
	CapMajor = 236
)

// Files of a driver, below its root.
var files = []string{
	"usr/lib/x86_64-linux-gnu/libcuda.so." + Version,
	"usr/lib/x86_64-linux-gnu/libnvidia-ml.so." + Version,
	"usr/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so." + Version,
	"usr/lib/x86_64-linux-gnu/libnvidia-encode.so." + Version,
	"usr/lib/x86_64-linux-gnu/libGLX_nvidia.so." + Version,
	"usr/bin/nvidia-smi",
	"usr/bin/nvidia-persistenced",
	"lib/firmware/nvidia/" + Version + "/gsp_ga10x.bin",
}

// MakeRoot makes the files of a driver below a directory, and the device
// nodes of GPUs, which takes root. No driver answers for the nodes: opening
// one is ENXIO where the kernel allows it, and EPERM where it does not. mig
// says how many instances a GPU has.
func MakeRoot(dir string, gpus int, mig map[int]int) error {
	for _, name := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte("of the driver\n"), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"libcuda", "libnvidia-ml", "libnvidia-encode"} {
		link := filepath.Join(dir, "usr/lib/x86_64-linux-gnu", name+".so.1")
		if err := os.Symlink(name+".so."+Version, link); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "dev/nvidia-caps"), 0o755); err != nil {
		return err
	}
	nodes := map[string]uint64{
		"nvidiactl": unix.Mkdev(Major, 255), "nvidia-modeset": unix.Mkdev(Major, 254),
		"nvidia-uvm": unix.Mkdev(CapMajor+1, 0), "nvidia-uvm-tools": unix.Mkdev(CapMajor+1, 1),
	}
	var minors strings.Builder
	next := uint32(1)
	capability := func(name string) {
		fmt.Fprintf(&minors, "%s %d\n", name, next)
		nodes[fmt.Sprintf("nvidia-caps/nvidia-cap%d", next)] = unix.Mkdev(CapMajor, next)
		next++
	}
	capability("config")
	capability("monitor")
	for g := range gpus {
		nodes[fmt.Sprintf("nvidia%d", g)] = unix.Mkdev(Major, uint32(g))
		for i := range mig[g] {
			capability(fmt.Sprintf("gpu%d/gi%d/access", g, i+1))
			capability(fmt.Sprintf("gpu%d/gi%d/ci0/access", g, i+1))
		}
	}
	for name, number := range nodes {
		path := filepath.Join(dir, "dev", name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(number)); err != nil {
			return fmt.Errorf("make device node %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // whatever the umask
			return err
		}
	}
	caps := filepath.Join(dir, "proc/driver/nvidia-caps")
	if err := os.MkdirAll(caps, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(caps, "mig-minors"), []byte(minors.String()), 0o644)
}
