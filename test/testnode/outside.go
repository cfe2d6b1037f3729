package testnode

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// outside is a network namespace that stands for the world beyond the node,
// with addresses that are set aside for documentation.
type outside struct {
	netns   string // file
	link    string // the node's end
	address netip.Addr
}

func openOutside(netns string, number int) (o outside, err error) {
	node := netip.AddrFrom4([4]byte{203, 0, 113, byte(4*number + 1)})
	o = outside{netns: netns, link: fmt.Sprintf("outside%d", number), address: node.Next()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make the outside: %w", err), o.close())
			o = outside{}
		}
	}()
	if err := removeLink(o.link); err != nil { // of a test that was killed
		return o, err
	}
	if err := namespace.Create(netns, func() error { return nil }); err != nil {
		return o, err
	}
	ns, err := os.Open(netns)
	if err != nil {
		return o, err
	}
	defer ns.Close()
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: o.link}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()),
	}); err != nil {
		return o, err
	}
	if err := address(o.link, node); err != nil {
		return o, err
	}
	return o, namespace.Do(netns, func() error {
		if err := address("eth0", o.address); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: node.AsSlice()})
	})
}

// Connect links another network namespace, one at most, to the outside: what
// is routed there is as far from it as jobs of the node are. The link ends with
// the namespace.
func (n *Node) Connect(netns string) error {
	if err := n.outside.connect(netns); err != nil {
		return fmt.Errorf("connect %s to the outside: %w", netns, err)
	}
	return nil
}

func (o outside) connect(netns string) error {
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	gateway := netip.AddrFrom4([4]byte{198, 51, 100, 1})
	if err := namespace.Do(o.netns, func() error {
		const link = "other"
		if err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()),
		}); err != nil {
			return err
		}
		return address(link, gateway)
	}); err != nil {
		return err
	}
	return namespace.Do(netns, func() error {
		if err := address("eth0", gateway.Next()); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
	})
}

// address sets a link up with an address of a /30.
func address(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	network := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(30, 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: network}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// listen opens a port outside.
func (o outside) listen() (l net.Listener, err error) {
	err = namespace.Do(o.netns, func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(o.address, 0).String())
		return err
	})
	return l, err
}

func (o outside) close() error {
	if o.netns == "" {
		return nil
	}
	return errors.Join(removeLink(o.link), namespace.Remove(o.netns))
}

// removeLink removes a link if it is there.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	return err
}
