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
)

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

// setAlias labels a link for whoever reads `ip link`.
func setAlias(name, alias string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetAlias(link, alias[:min(len(alias), 255)]); err != nil {
		return fmt.Errorf("label link %s: %w", name, err)
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
	if _, err := dump(func() (uint, error) {
		return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, filters...)
	}); err != nil {
		return fmt.Errorf("forget connections of %s: %w", addr, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// dump calls list again for as long as the kernel says that the answer changed
// while it was given.
func dump[T any](list func() (T, error)) (T, error) {
	for range 10 {
		if all, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return list()
}
