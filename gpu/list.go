package gpu

import (
	"gitlab.com/berth-ci/berth/node/api"
)

// free tells of each device whether no job has it.
func (p *Pool) free() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := map[string]bool{}
	if p.inventory != nil {
		for _, d := range p.inventory.Devices {
			free[d.UUID] = p.holders[d.UUID] == ""
		}
	}
	return free
}

// List tells what there is, who has it and how it is.
func (k *Keeper) List() *api.GPUList {
	list := k.pool.list()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trouble != nil {
		list.Reason = k.trouble.Error()
	}
	for n := range list.GPUs {
		g := &list.GPUs[n]
		r, ok := k.readings[g.UUID]
		if !ok {
			continue
		}
		g.Reading = &api.GPUReading{At: r.At, Utilisation: r.Utilisation, MemoryUsed: r.MemoryUsed, Uncorrected: r.Uncorrected, Throttled: r.Throttled}
		for _, p := range r.Processes {
			g.Reading.PIDs = append(g.Reading.PIDs, p.PID)
		}
		g.Unread = append(g.Unread, r.Unread...)
	}
	return list
}

func (p *Pool) list() *api.GPUList {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := &api.GPUList{GPUs: []api.GPU{}, Waiting: len(p.waiting)}
	listed := map[string]bool{}
	if p.inventory != nil {
		list.Driver, list.CUDA, list.Faults = p.inventory.Driver, p.inventory.CUDA, p.inventory.Faults
		for _, d := range p.inventory.Devices {
			listed[d.UUID] = true
			g := api.GPU{
				UUID: d.UUID, Index: d.Index, Model: d.Model, MIG: d.MIG, GPU: d.GPU, Memory: d.Memory,
				PCI: d.PCI, NUMA: d.NUMA, CPUs: d.CPUs, State: api.GPUFree, Persistence: d.Persistence, Unread: append([]string(nil), d.Unread...),
			}
			if d.Unusable != "" {
				g.State, g.Reason = api.GPUUnusable, d.Unusable
			}
			for _, l := range p.inventory.Links {
				other := l.A
				if l.A == d.GPU {
					other = l.B
				} else if l.B != d.GPU {
					continue
				}
				g.Links = append(g.Links, api.GPULink{To: other, NVLinks: l.NVLinks, Path: l.Path.String()})
			}
			list.GPUs = append(list.GPUs, g)
		}
	}
	// What is gone but not forgotten.
	for uuid := range p.holders {
		if !listed[uuid] {
			listed[uuid] = true
			list.GPUs = append(list.GPUs, api.GPU{UUID: uuid, GPU: uuid, NUMA: -1, State: api.GPUGone})
		}
	}
	for uuid := range p.shelf {
		if !listed[uuid] {
			list.GPUs = append(list.GPUs, api.GPU{UUID: uuid, GPU: uuid, NUMA: -1, State: api.GPUGone})
		}
	}
	for n := range list.GPUs {
		g := &list.GPUs[n]
		if q := p.shelf[g.UUID]; q != nil {
			g.Quarantine = &api.GPUQuarantine{Cause: q.Cause, Reason: q.Reason, Since: q.Since}
			if g.State == api.GPUFree {
				g.State = api.GPUQuarantined
			}
		}
		if key := p.holders[g.UUID]; key != "" {
			l := p.leases[key]
			g.Holder = &api.GPUHolder{Job: key, ID: l.Job.ID, Project: l.Job.Project, Since: l.Since}
			if g.State != api.GPUGone {
				g.State = api.GPULeased
			}
		}
	}
	return list
}
