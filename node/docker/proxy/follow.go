package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
)

// Event tells of something that a container of the job's did.
func (p *Proxy) Event(ctx context.Context, action, id string) {
	if _, ok := p.owns(id); !ok {
		return // it is just being made
	}
	if action == "destroy" {
		p.removed(id)
		return
	}
	p.settle(ctx, id)
}

// CatchUp looks what has become of the job's containers.
func (p *Proxy) CatchUp(ctx context.Context) {
	ids := p.containerIDs()
	if len(ids) == 0 {
		return
	}
	var containers []struct{ ID string }
	if err := p.Engine.Call(ctx, http.MethodGet, "/containers/json", p.ownFilter(url.Values{"all": {"1"}}), nil, &containers); err != nil {
		p.log.WithError(err).Warn("cannot look for a job's containers")
		return
	}
	there := map[string]bool{}
	for _, made := range containers {
		there[made.ID] = true
	}
	for _, id := range ids {
		if there[id] {
			p.settle(ctx, id)
		} else {
			p.removed(id)
		}
	}
}

// Release frees what is kept in memory of a job that has ended.
func (n *Node) Release(job string) {
	_ = n.Ledger.Each(job, func(kind, _ string, about json.RawMessage) error { // what is not freed is not given out again
		if kind == ledger.Network {
			var r networkRecord
			if json.Unmarshal(about, &r) != nil {
				return nil
			}
			if s, err := netip.ParsePrefix(r.Subnet); err == nil {
				n.freeSubnet(s)
			}
		}
		return nil
	})
}
