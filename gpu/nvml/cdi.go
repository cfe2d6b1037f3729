//go:build cgo

package nvml

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"tags.cncf.io/container-device-interface/specs-go"
)

// common are the edits of any container with a GPU, and for which driver.
type common struct {
	version string
	edits   specs.ContainerEdits
}

// generator makes CDI specs.
func (d *Driver) generator() (nvcdi.Interface, error) {
	namer, err := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID)
	if err != nil {
		return nil, err
	}
	silent := logrus.New() // it warns of each library that a driver need not have
	silent.SetOutput(io.Discard)
	return nvcdi.New(
		nvcdi.WithLogger(silent),
		nvcdi.WithNvmlLib(d.lib),
		nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithDeviceNamers(namer),
		nvcdi.WithDriverRoot(d.options.Root),
		nvcdi.WithDevRoot(d.options.Root),
		nvcdi.WithNVIDIACDIHookPath(d.options.Hook),
		// The first changes what the driver has set, the second is for graphics.
		nvcdi.WithDisabledHooks("apply-cuda-memory-limits", "update-application-profile"),
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils),
	)
}

// commonEdits finds the driver's libraries and programs once for each version.
func (d *Driver) commonEdits(version string) (specs.ContainerEdits, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.common != nil && d.common.version == version {
		return d.common.edits, nil
	}
	if err := d.makeNodes(); err != nil {
		return specs.ContainerEdits{}, err
	}
	g, err := d.generator()
	if err != nil {
		return specs.ContainerEdits{}, fmt.Errorf("find the driver's files: %w", err)
	}
	edits, err := g.GetCommonEdits()
	if err != nil {
		return specs.ContainerEdits{}, fmt.Errorf("find the driver's files in %s: %w: %w", d.options.Root, err, errdefs.ErrUnavailable)
	}
	d.common = &common{version, *edits.ContainerEdits}
	if !slices.ContainsFunc(d.common.edits.Mounts, func(m *specs.Mount) bool { return filepath.Base(m.HostPath) == "libcuda.so."+version }) {
		// nvcdi leaves out what it does not find.
		d.common = nil
		return specs.ContainerEdits{}, fmt.Errorf("find the driver's files in %s: there is no libcuda.so.%s: %w", d.options.Root, version, errdefs.ErrUnavailable)
	}
	return d.common.edits, nil
}

// makeNodes has NVIDIA's own program make the device nodes that nothing
// computes without. After a boot that of unified memory is only there once
// somebody has computed outside of containers.
func (d *Driver) makeNodes() error {
	missing := func() string {
		for _, name := range []string{"nvidiactl", "nvidia-uvm"} {
			path := filepath.Join(d.options.Root, "dev", name)
			if info, err := os.Stat(path); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
				return path
			}
		}
		return ""
	}
	if missing() == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(d.options.Root, "usr/bin/nvidia-modprobe"), "-u", "-c", "0").CombinedOutput()
	path := missing()
	if path == "" {
		return nil
	}
	why := strings.TrimSpace(string(out))
	if err != nil {
		why = strings.TrimSpace(err.Error() + " " + why)
	}
	return fmt.Errorf("find the driver's device nodes: there is no %s, without which nothing computes, and nvidia-modprobe -u -c 0 makes none: %s: %w", path, why, errdefs.ErrUnavailable)
}

// wholeEdits are those for a GPU.
func (d *Driver) wholeEdits(uuid string, minor int) (specs.ContainerEdits, error) {
	g, err := d.generator()
	if err != nil {
		return specs.ContainerEdits{}, err
	}
	devices, err := g.GetDeviceSpecsByID(uuid)
	if err != nil {
		return specs.ContainerEdits{}, fmt.Errorf("find its device nodes: %w", err)
	}
	node := fmt.Sprintf("/dev/nvidia%d", minor)
	if len(devices) == 1 {
		for _, n := range devices[0].ContainerEdits.DeviceNodes {
			if n.Path == node {
				return devices[0].ContainerEdits, nil
			}
		}
	}
	return specs.ContainerEdits{}, fmt.Errorf("its device node %s is missing: nvidia-modprobe -u -c %d makes it", node, minor)
}

// instanceEdits are those for a MIG instance: the nodes of its GPU and of the
// two capabilities that open the instance. nvcdi looks for their numbers
// outside of the driver's root.
func (d *Driver) instanceEdits(minor, gi, ci int) (specs.ContainerEdits, error) {
	caps, err := d.migMinors()
	if err != nil {
		return specs.ContainerEdits{}, err
	}
	paths := []string{fmt.Sprintf("/dev/nvidia%d", minor)}
	for _, name := range []string{fmt.Sprintf("gpu%d/gi%d/access", minor, gi), fmt.Sprintf("gpu%d/gi%d/ci%d/access", minor, gi, ci)} {
		n, ok := caps[name]
		if !ok {
			return specs.ContainerEdits{}, fmt.Errorf("the driver lists no capability %s for it", name)
		}
		paths = append(paths, "/dev/nvidia-caps/nvidia-cap"+n)
	}
	var edits specs.ContainerEdits
	for _, path := range paths {
		host := filepath.Join(d.options.Root, path)
		if info, err := os.Stat(host); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
			return specs.ContainerEdits{}, fmt.Errorf("its device node %s is missing: nvidia-modprobe makes it", host)
		}
		edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{Path: path, HostPath: host})
	}
	return edits, nil
}

// migMinors are the numbers of the capabilities' device nodes. /proc is the
// kernel's, unless the driver's root has one of its own.
func (d *Driver) migMinors() (map[string]string, error) {
	const file = "proc/driver/nvidia-caps/mig-minors"
	f, err := os.Open(filepath.Join(d.options.Root, file))
	if err != nil {
		f, err = os.Open("/" + file)
	}
	if err != nil {
		return nil, fmt.Errorf("find MIG's device nodes: %w", err)
	}
	defer f.Close()
	minors := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, minor, ok := strings.Cut(lines.Text(), " "); ok {
			minors[name] = minor
		}
	}
	return minors, lines.Err()
}
