// Package gputest has a gpu.Driver for tests that need GPUs and no library:
// it tells what it is told to tell.
package gputest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"gitlab.com/berth-ci/berth/gpu"
)

// Driver is a driver of A100s that do nothing.
type Driver struct {
	mu        sync.Mutex
	inventory *gpu.Inventory
	readings  map[string]gpu.Reading
	events    chan gpu.Event
	fault     error
	calls     map[string]int
}

// UUID of the n-th GPU.
func UUID(n int) string { return fmt.Sprintf("GPU-%d", n) }

// New makes a driver of n GPUs.
func New(n int) *Driver {
	d := &Driver{readings: map[string]gpu.Reading{}, events: make(chan gpu.Event, 100), calls: map[string]int{}}
	i := &gpu.Inventory{Driver: "550.54.15", CUDA: "12.4"}
	for g := range n {
		i.Devices = append(i.Devices, gpu.Device{UUID: UUID(g), GPU: UUID(g), Index: g, Model: "NVIDIA A100-SXM4-40GB", Memory: 40 << 30, NUMA: -1})
	}
	d.inventory = i
	return d
}

// Change changes what there is.
func (d *Driver) Change(change func(*gpu.Inventory)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := *d.inventory
	now.Devices = append([]gpu.Device(nil), now.Devices...)
	change(&now)
	d.inventory = &now
}

// Set changes how a device is.
func (d *Driver) Set(uuid string, r gpu.Reading) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readings[uuid] = r
}

// Fail has all calls fail; nil ends that.
func (d *Driver) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = err
}

// Report has something happen.
func (d *Driver) Report(e gpu.Event) { d.events <- e }

// Calls is how often a method was called.
func (d *Driver) Calls(method string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[method]
}

// Inventory is gpu.Driver's.
func (d *Driver) Inventory(context.Context) (*gpu.Inventory, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls["Inventory"]++
	if d.fault != nil {
		return nil, d.fault
	}
	return d.inventory, nil
}

// Read is gpu.Driver's.
func (d *Driver) Read(_ context.Context, uuids []string) (map[string]gpu.Reading, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls["Read"]++
	if d.fault != nil {
		return nil, d.fault
	}
	readings := map[string]gpu.Reading{}
	for _, uuid := range uuids {
		r := d.readings[uuid]
		r.At = time.Now()
		readings[uuid] = r
	}
	return readings, nil
}

// Events is gpu.Driver's.
func (d *Driver) Events(ctx context.Context) ([]gpu.Event, error) {
	d.mu.Lock()
	fault := d.fault
	d.mu.Unlock()
	if fault != nil {
		return nil, fault
	}
	select {
	case e := <-d.events:
		return []gpu.Event{e}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(time.Second):
		return nil, nil
	}
}
