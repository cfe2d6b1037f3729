package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// The job's subnet: .1 is the job, .2 is kept for docker's own use, services
// follow up to .127, the upper half is docker's.
const (
	firstEndpoint = 3
	maxEndpoints  = 128 - firstEndpoint
)

// Endpoint is the namespace of one of a job's services, on the job's bridge.
type Endpoint struct {
	Name  string     `json:"name"`
	Netns string     `json:"netns"`
	Addr  netip.Addr `json:"addr"`
}

// Join makes the job's nth endpoint, counted from 0. Name is what operators
// see on its link. Release of the network removes it.
func (p *Pool) Join(ctx context.Context, n Network, name string, nth int) (_ Endpoint, err error) {
	if nth < 0 || nth >= maxEndpoints {
		return Endpoint{}, fmt.Errorf("join endpoint %d: a job has at most %d: %w", nth, maxEndpoints, errdefs.ErrResourceExhausted)
	}
	if err := ctx.Err(); err != nil {
		return Endpoint{}, context.Cause(ctx)
	}
	l, err := p.lease(n)
	if err != nil {
		return Endpoint{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return Endpoint{}, fmt.Errorf("network of job %q: %w", n.Job, errdefs.ErrNotFound)
	}
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return Endpoint{}, fmt.Errorf("find bridge %s: %w", n.Bridge, err)
	}

	e := Endpoint{Name: name, Netns: fmt.Sprintf("%s-%d", n.Netns, nth), Addr: add(n.Subnet.Addr(), firstEndpoint+nth)}
	link := p.endpointLink(n, nth)
	if err := namespace.Create(e.Netns, prepareNamespace); err != nil {
		return Endpoint{}, fmt.Errorf("join endpoint %q: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("join endpoint %q: %w", name, errors.Join(err, removeLink(link), namespace.Remove(e.Netns)))
		}
	}()
	if err := p.addVeth(link, bridge.Attrs().Index, e.Netns, bridgeSide); err != nil {
		return Endpoint{}, err
	}
	if err := setAlias(link, n.Job+" "+name); err != nil {
		return Endpoint{}, err
	}
	if err := namespace.Do(e.Netns, func() error {
		if err := setAddr(bridgeSide, netip.PrefixFrom(e.Addr, n.Subnet.Bits())); err != nil {
			return err
		}
		if err := addDefaultRoute(bridgeSide, n.Gateway); err != nil {
			return err
		}
		return awaitCarrier(ctx, bridgeSide)
	}); err != nil {
		return Endpoint{}, err
	}
	if err := awaitCarrier(ctx, link); err != nil {
		return Endpoint{}, err
	}
	return e, nil
}

// endpoints finds a network's endpoints by the files of their namespaces,
// which are made before their links.
func (p *Pool) endpoints(n Network) (map[int]string, error) {
	dir, base := filepath.Split(n.Netns)
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	found := map[int]string{}
	for _, f := range files {
		if rest, ok := strings.CutPrefix(f.Name(), base+"-"); ok {
			if nth, err := strconv.Atoi(rest); err == nil {
				found[nth] = filepath.Join(dir, f.Name())
			}
		}
	}
	return found, nil
}

func (p *Pool) endpointLink(n Network, nth int) string {
	return fmt.Sprintf("%s-%d", p.config.link(endpointLink, n.Slot), nth)
}
