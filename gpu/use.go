package gpu

import (
	"slices"
	"time"

	"gitlab.com/berth-ci/berth/node/api"
)

// use gathers what a job makes of its devices.
type use struct {
	since   time.Time
	devices map[string]*deviceUse
}

type deviceUse struct {
	api.GPUDeviceUse
	sum         int
	told        int // samples with a utilisation
	first, last *uint64
}

func newUse(i *Inventory, uuids []string) *use {
	u := &use{since: time.Now(), devices: map[string]*deviceUse{}}
	for _, uuid := range uuids {
		d, _ := i.find(uuid)
		u.devices[uuid] = &deviceUse{GPUDeviceUse: api.GPUDeviceUse{UUID: uuid, Name: d.Name(), Memory: d.Memory}}
	}
	return u
}

// add takes a reading of one of the devices.
func (u *use) add(uuid string, r Reading) {
	d := u.devices[uuid]
	if d == nil || r.Lost != "" {
		return
	}
	d.Samples++
	d.MemoryPeak = max(d.MemoryPeak, r.MemoryUsed)
	if r.Utilisation != nil {
		d.told++
		d.sum += *r.Utilisation
		if d.Peak == nil || *d.Peak < *r.Utilisation {
			d.Peak = r.Utilisation
		}
		d.Used = d.Used || *r.Utilisation > 0
	}
	d.Used = d.Used || len(r.Processes) > 0
	if r.Energy != nil {
		if d.first == nil || *r.Energy < *d.first { // the driver was loaded again
			d.first = r.Energy
		}
		d.last = r.Energy
	}
	for _, why := range r.Throttled {
		if !slices.Contains(d.Throttled, why) {
			d.Throttled = append(d.Throttled, why)
		}
	}
}

// fault notes an XID.
func (u *use) fault(uuid string, xid uint64) {
	if d := u.devices[uuid]; d != nil && !slices.Contains(d.XIDs, xid) {
		d.XIDs = append(d.XIDs, xid)
	}
}

// report tells it all, in the order of the lease.
func (u *use) report(uuids []string) *api.GPUUse {
	r := &api.GPUUse{Since: u.since}
	for _, uuid := range uuids {
		d := u.devices[uuid]
		if d == nil {
			continue
		}
		one := d.GPUDeviceUse
		one.XIDs, one.Throttled = slices.Clone(d.XIDs), slices.Clone(d.Throttled)
		if d.told > 0 {
			mean := float64(d.sum) / float64(d.told)
			one.Mean = &mean
		}
		if d.first != nil {
			joules := float64(*d.last-*d.first) / 1000
			one.Energy = &joules
		}
		r.Devices = append(r.Devices, one)
	}
	return r
}
