//go:build cgo

package nvml

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/gpu"
)

// Driver asks NVML.
type Driver struct {
	lib     nvml.Interface
	options Options

	mu     sync.Mutex
	common *common // edits of any container, kept since they take long to find

	waiting    sync.Mutex // held while events are waited for
	events     nvml.EventSet
	registered map[string]bool

	sampling sync.Mutex
	samples  map[string]*sample // of instances, by UUID
}

// Open loads NVIDIA's library. It is not closed: it ends with the process,
// and so does the grip that it has on the kernel's module.
func Open(o Options) (gpu.Driver, error) {
	var opts []nvml.LibraryOption
	if o.Root != "" && o.Root != "/" {
		found, _ := filepath.Glob(filepath.Join(o.Root, "usr/lib*/*/libnvidia-ml.so.1"))
		if len(found) == 0 {
			found, _ = filepath.Glob(filepath.Join(o.Root, "usr/lib*/libnvidia-ml.so.1"))
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("no NVIDIA driver in %s: there is no usr/lib*/libnvidia-ml.so.1: %w", o.Root, errdefs.ErrNotFound)
		}
		opts = append(opts, nvml.WithLibraryPath(found[0]))
	}
	return New(nvml.New(opts...), o)
}

// New asks the library that is given.
func New(lib nvml.Interface, o Options) (*Driver, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	switch ret := lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return nil, fmt.Errorf("no NVIDIA driver: libnvidia-ml.so.1 is not installed: %w", errdefs.ErrNotFound)
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return nil, fmt.Errorf("no NVIDIA driver: its kernel module is not loaded: %w", errdefs.ErrNotFound)
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return nil, fmt.Errorf("the NVIDIA driver was upgraded, but its old kernel module is still loaded: load the new one, or boot: %w", errdefs.ErrUnavailable)
	default:
		return nil, fmt.Errorf("start NVML: %w", failure(ret))
	}
	d := &Driver{lib: lib, options: o, registered: map[string]bool{}, samples: map[string]*sample{}}
	if err := d.checkAge(); err != nil {
		return nil, err
	}
	return d, nil
}

// failure is what NVML returned, as an error of its class.
func failure(ret nvml.Return) error {
	class := error(errdefs.ErrUnavailable)
	if ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT {
		class = errdefs.ErrNotFound
	}
	return fmt.Errorf("NVML says %w: %w", ret, class)
}

// told tells whether NVML gave an answer, which may be that the device has no
// such thing. Anything else is noted as unread.
func told(ret nvml.Return, what string, unread *[]string) bool {
	switch ret {
	case nvml.SUCCESS:
		return true
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND:
	default:
		*unread = append(*unread, fmt.Sprintf("%s: %v", what, ret))
	}
	return false
}

// gone tells whether NVML cannot speak with a device any more.
func gone(ret nvml.Return) bool {
	return ret == nvml.ERROR_GPU_IS_LOST || ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT ||
		ret == nvml.ERROR_RESET_REQUIRED || ret == nvml.ERROR_UNINITIALIZED
}

// each calls f for each GPU that answers, and returns the faults of others.
func (d *Driver) each(f func(index int, h nvml.Device) error) (faults []string, err error) {
	n, ret := d.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count GPUs: %w", failure(ret))
	}
	for i := range n {
		h, ret := d.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			faults = append(faults, fmt.Sprintf("GPU %d does not answer: %v", i, ret))
			continue
		}
		if err := f(i, h); err != nil {
			faults = append(faults, fmt.Sprintf("GPU %d: %v", i, err))
		}
	}
	return faults, nil
}

var _ gpu.Driver = (*Driver)(nil)

// Inventory tells what there is.
func (d *Driver) Inventory(context.Context) (*gpu.Inventory, error) {
	version, ret := d.lib.SystemGetDriverVersion()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("read the version of the driver: %w", failure(ret))
	}
	i := &gpu.Inventory{Driver: version}
	if cuda, ret := d.lib.SystemGetCudaDriverVersion(); told(ret, "version of CUDA", &i.Faults) {
		i.CUDA = fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10)
	}
	edits, err := d.commonEdits(version)
	if err != nil {
		return nil, err
	}
	i.Edits = edits
	var cards []card
	faults, err := d.each(func(index int, h nvml.Device) error {
		c, devices, err := d.card(index, h)
		if err != nil {
			return err
		}
		cards = append(cards, c)
		i.Devices = append(i.Devices, devices...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	i.Faults = append(i.Faults, faults...)
	i.Links = links(cards)
	return i, nil
}
