// Package network makes the networks of jobs: a namespace for each, which is
// the router of the job's services and docker containers, a bridge that joins
// them, and an uplink to the node. What a job may reach is decided by one
// nftables table on the node, out of reach of even a privileged job. It
// starts no processes in the namespaces and resolves no names.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Names of links inside namespaces.
const (
	bridgeSide = "eth0" // towards the job's bridge
	nodeSide   = "up0"  // towards the node
)

// Network is a job's network. It can be stored and handed to a later berthd.
type Network struct {
	Slot    int    `json:"slot"`
	Job     string `json:"job"`
	Profile string `json:"profile"`
	// Netns is the file that the job's namespace is bound to.
	Netns string `json:"netns"`
	// Bridge and Uplink are links on the node.
	Bridge string `json:"bridge"`
	Uplink string `json:"uplink"`
	// Subnet is the job's own: services have addresses in its lower half,
	// docker containers in its upper.
	Subnet netip.Prefix `json:"subnet"`
	// Gateway is the address of the job's namespace on its bridge.
	Gateway netip.Addr `json:"gateway"`
	// Address is the job's address on the uplink, by which the node knows it.
	Address netip.Addr `json:"address"`
}

// build makes everything of n; on failure nothing remains.
func (p *Pool) build(ctx context.Context, n Network) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make network %d: %w", n.Slot, errors.Join(err, p.destroy(n)))
		}
	}()
	if err := namespace.Create(n.Netns, prepareNamespace); err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: n.Bridge, MTU: p.config.MTU}}
	if err := addLink(bridge); err != nil {
		return err
	}
	if err := p.addVeth(p.config.link(routerLink, n.Slot), bridge.Index, n.Netns, bridgeSide); err != nil {
		return err
	}
	if err := p.addVeth(n.Uplink, 0, n.Netns, nodeSide); err != nil {
		return err
	}
	if err := namespace.Do(n.Netns, func() error {
		if err := setAddr(bridgeSide, netip.PrefixFrom(n.Gateway, n.Subnet.Bits())); err != nil {
			return err
		}
		// Lets localhost:PORT of the job lead to a container of its own.
		if err := sysctl("ipv4/conf/"+bridgeSide+"/route_localnet", "1"); err != nil {
			return err
		}
		if err := sysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
		if err := setAddr(nodeSide, netip.PrefixFrom(n.Address, 32)); err != nil {
			return err
		}
		if err := addDefaultRoute(nodeSide, nodeAddr); err != nil {
			return err
		}
		if err := nft(ctx, jobRules); err != nil {
			return err
		}
		return awaitCarrier(ctx, bridgeSide, nodeSide)
	}); err != nil {
		return err
	}
	if err := setAddr(n.Uplink, netip.PrefixFrom(nodeAddr, 32)); err != nil {
		return err
	}
	if err := addHostRoute(n.Uplink, n.Address); err != nil {
		return err
	}
	return awaitCarrier(ctx, p.config.link(routerLink, n.Slot), n.Uplink)
}

// destroy removes whatever exists of n. Namespaces go last: by their files the
// endpoints are found, should it have to be done again.
func (p *Pool) destroy(n Network) error {
	if err := p.expel(n); err != nil {
		return err
	}
	endpoints, err := p.endpoints(n)
	if err != nil {
		return err
	}
	further, err := p.furtherLinks(n)
	if err != nil {
		return err
	}
	links := slices.Concat(further, []string{n.Uplink, p.config.link(routerLink, n.Slot), n.Bridge})
	for nth := range endpoints {
		links = append(links, p.endpointLink(n, nth))
	}
	// The kernel takes some 20 ms for each link, most of them waiting.
	var g errgroup.Group
	for _, name := range links {
		g.Go(func() error { return removeLink(name) })
	}
	g.Go(func() error { return forgetConnections(n.Address) })
	if err := g.Wait(); err != nil {
		return err
	}
	for _, file := range endpoints {
		if err := namespace.Remove(file); err != nil {
			return err
		}
	}
	return namespace.Remove(n.Netns)
}

// prepareNamespace is called in a new namespace before it has any links.
func prepareNamespace() error {
	for name, value := range map[string]string{
		"ipv4/ping_group_range":           "0\t2147483647", // ping without privilege
		"ipv4/ip_unprivileged_port_start": "0",
	} {
		if err := sysctl(name, value); err != nil {
			return err
		}
	}
	// The loopback keeps its ::1.
	if err := noIPv6("default"); err != nil {
		return err
	}
	return setUp("lo")
}
