//go:build cgo

package nvml

import (
	"context"
	"fmt"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/gpu"
)

const (
	// eventsWait is how long a call waits, in milliseconds.
	eventsWait = 2000
	// doubleBitXID is the XID of what has an event of its own, too.
	doubleBitXID = 48
)

// Events waits a while for what happens to the GPUs. Those that were found
// since the last call are included.
func (d *Driver) Events(ctx context.Context) ([]gpu.Event, error) {
	d.waiting.Lock()
	defer d.waiting.Unlock()
	if d.events == nil {
		set, ret := d.lib.EventSetCreate()
		if ret != nvml.SUCCESS {
			return nil, fmt.Errorf("watch for events: %w", failure(ret))
		}
		d.events = set
	}
	watched := 0
	if _, err := d.each(func(_ int, h nvml.Device) error {
		uuid, ret := h.GetUUID()
		if ret != nvml.SUCCESS {
			return ret
		}
		if !d.registered[uuid] {
			types, ret := h.GetSupportedEventTypes()
			if ret != nvml.SUCCESS {
				return ret
			}
			if ret := h.RegisterEvents(types&(nvml.EventTypeXidCriticalError|nvml.EventTypeDoubleBitEccError), d.events); ret != nvml.SUCCESS {
				return ret
			}
			d.registered[uuid] = true
		}
		watched++
		return nil
	}); err != nil {
		return nil, err
	}
	if watched == 0 {
		return nil, fmt.Errorf("watch for events: no GPU reports any: %w", errdefs.ErrNotImplemented)
	}
	var events []gpu.Event
	for wait := uint32(eventsWait); ctx.Err() == nil; wait = 0 { // and what else there is
		e, ret := d.events.Wait(wait)
		if ret == nvml.ERROR_TIMEOUT {
			break
		}
		if ret != nvml.SUCCESS {
			if len(events) > 0 {
				break
			}
			return nil, fmt.Errorf("wait for events: %w", failure(ret))
		}
		if event, ok := eventOf(e); ok {
			events = append(events, event)
		}
	}
	return events, nil
}

func eventOf(e nvml.EventData) (gpu.Event, bool) {
	if e.Device == nil {
		return gpu.Event{}, false
	}
	uuid, ret := e.Device.GetUUID()
	if ret != nvml.SUCCESS {
		return gpu.Event{}, false // Read will find the GPU lost
	}
	event := gpu.Event{GPU: uuid, XID: e.EventData, GPUInstance: -1, ComputeInstance: -1}
	if e.EventType == nvml.EventTypeDoubleBitEccError {
		event.XID = doubleBitXID
	}
	if e.GpuInstanceId != math.MaxUint32 {
		event.GPUInstance = int(e.GpuInstanceId)
	}
	if e.ComputeInstanceId != math.MaxUint32 {
		event.ComputeInstance = int(e.ComputeInstanceId)
	}
	return event, true
}
