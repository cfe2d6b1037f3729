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
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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

// destroy removes whatever exists of n.
func (p *Pool) destroy(n Network) error {
	errs := []error{p.expel(n), p.removeEndpoints(n)}
	for _, name := range []string{n.Uplink, p.config.link(routerLink, n.Slot), n.Bridge} {
		errs = append(errs, removeLink(name))
	}
	errs = append(errs, namespace.Remove(n.Netns), forgetConnections(n.Address))
	return errors.Join(errs...)
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

// addLink makes a link on the node, without IPv6, and sets it up.
func addLink(link netlink.Link) error {
	name := link.Attrs().Name
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	if err := noIPv6(name); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// addVeth joins a link on the node, a port of the bridge if one is given, to
// a new link in the namespace.
func (p *Pool) addVeth(name string, bridge int, netns, peer string) error {
	ns, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer ns.Close()
	return addLink(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MTU: p.config.MTU, MasterIndex: bridge},
		PeerName:      peer,
		PeerNamespace: netlink.NsFd(ns.Fd()),
	})
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// setAddr gives a link of the calling thread's namespace its address and sets
// it up.
func setAddr(name string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", addr, name, err)
	}
	return setUp(name)
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// awaitCarrier waits until links that are up carry packets. The kernel takes
// note of a carrier with a delay, and what is sent before is lost: a first
// connection would hang for a second.
func awaitCarrier(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, name := range names {
		for {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return fmt.Errorf("find link %s: %w", name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for carrier of link %s: %w", name, context.Cause(ctx))
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}

func addDefaultRoute(name string, via netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route by %s: %w", name, err)
	}
	return nil
}

func addHostRoute(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(addr, 32)), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add route to %s by %s: %w", addr, name, err)
	}
	return nil
}

// forgetConnections makes the node's connection tracking forget a job, so
// that the next owner of its address does not inherit what it had open.
func forgetConnections(addr netip.Addr) error {
	var filters []netlink.CustomConntrackFilter
	for _, side := range []netlink.ConntrackFilterType{netlink.ConntrackOrigSrcIP, netlink.ConntrackOrigDstIP} {
		f := &netlink.ConntrackFilter{}
		if err := f.AddIP(side, addr.AsSlice()); err != nil {
			return fmt.Errorf("forget connections of %s: %w", addr, err)
		}
		filters = append(filters, f)
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, filters...); err != nil {
		return fmt.Errorf("forget connections of %s: %w", addr, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
