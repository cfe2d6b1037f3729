package gpu

import (
	"slices"
	"time"

	"gitlab.com/berth-ci/berth/node/api"
)

// longestGap is the most time between two looks at a job's devices in which
// nothing is taken to be missed.
const longestGap = 5 * sampleInterval

// use gathers what a job makes of its devices. Files keep it for the next
// berthd.
type use struct {
	Since   time.Time             `json:"since"`
	Devices map[string]*deviceUse `json:"devices"`
	// Seen is when it was looked last, Unwatched how long it was not.
	Seen      time.Time     `json:"seen"`
	Unwatched time.Duration `json:"unwatched,omitempty"`
}

type deviceUse struct {
	api.GPUDeviceUse
	// Sum of the utilisations that Told samples had.
	Sum  int `json:"sum"`
	Told int `json:"told"`
	// Spent is energy, Meter what the driver's counter of it said last; both
	// in millijoules.
	Spent uint64  `json:"spent,omitempty"`
	Meter *uint64 `json:"meter,omitempty"`
}

func newUse(i *Inventory, uuids []string, since time.Time) *use {
	u := &use{Since: since, Seen: since, Devices: map[string]*deviceUse{}}
	for _, uuid := range uuids {
		d, _ := i.find(uuid)
		u.Devices[uuid] = &deviceUse{GPUDeviceUse: api.GPUDeviceUse{UUID: uuid, Name: d.Name(), Memory: d.Memory}}
	}
	return u
}

// look notes that the devices are being looked at.
func (u *use) look(at time.Time) {
	if gap := at.Sub(u.Seen); gap > longestGap {
		u.Unwatched += gap
	}
	u.Seen = at
}

// add takes a reading of one of the devices.
func (u *use) add(uuid string, r Reading) {
	d := u.Devices[uuid]
	if d == nil {
		return
	}
	if r.Lost != "" {
		d.Lost = r.Lost
		return
	}
	d.Samples++
	d.MemoryPeak = max(d.MemoryPeak, r.MemoryUsed)
	if r.Utilisation != nil {
		d.Told++
		d.Sum += *r.Utilisation
		if d.Peak == nil || *d.Peak < *r.Utilisation {
			d.Peak = r.Utilisation
		}
		d.Used = d.Used || *r.Utilisation > 0
	}
	d.Used = d.Used || len(r.Processes) > 0
	if r.Energy != nil {
		if d.Meter != nil && *r.Energy > *d.Meter { // it begins anew with the driver
			d.Spent += *r.Energy - *d.Meter
		}
		d.Meter = r.Energy
	}
	for _, why := range r.Throttled {
		if !slices.Contains(d.Throttled, why) {
			d.Throttled = append(d.Throttled, why)
		}
	}
}

// fault notes an XID.
func (u *use) fault(uuid string, xid uint64) {
	if d := u.Devices[uuid]; d != nil && !slices.Contains(d.XIDs, xid) {
		d.XIDs = append(d.XIDs, xid)
	}
}

// report tells it all, in the order of the lease.
func (u *use) report(uuids []string) *api.GPUUse {
	r := &api.GPUUse{Since: u.Since, Unwatched: u.Unwatched}
	for _, uuid := range uuids {
		d := u.Devices[uuid]
		if d == nil {
			continue
		}
		one := d.GPUDeviceUse
		one.XIDs, one.Throttled = slices.Clone(d.XIDs), slices.Clone(d.Throttled)
		if d.Told > 0 {
			mean := float64(d.Sum) / float64(d.Told)
			one.Mean = &mean
		}
		if d.Meter != nil {
			joules := float64(d.Spent) / 1000
			one.Energy = &joules
		}
		r.Devices = append(r.Devices, one)
	}
	return r
}
