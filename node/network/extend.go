package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// maxBridges is how many bridges a job may have besides its own; names of
// links have room for two digits.
const maxBridges = 99

// Extend makes a further bridge of a job, the nth from 1, of which the job's
// namespace is the router, too, at an address in a subnet. Release of the
// network removes it.
func (p *Pool) Extend(ctx context.Context, n Network, nth int, router netip.Prefix) (bridge string, err error) {
	if nth < 1 || nth > maxBridges {
		return "", fmt.Errorf("add bridge %d: a job has at most %d: %w", nth, maxBridges, errdefs.ErrResourceExhausted)
	}
	l, err := p.lease(n)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return "", fmt.Errorf("network of job %q: %w", n.Job, errdefs.ErrNotFound)
	}
	bridge, leg := p.further(n, nth)
	defer func() {
		if err != nil {
			err = fmt.Errorf("add bridge %d of job %q: %w", nth, n.Job, errors.Join(err, p.withdraw(n, nth)))
		}
	}()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: p.config.MTU}}
	if err := addLink(link); err != nil {
		return "", err
	}
	if err := setAlias(bridge, n.Job); err != nil {
		return "", err
	}
	inside := fmt.Sprintf("eth%d", nth)
	if err := p.addVeth(leg, link.Index, n.Netns, inside); err != nil {
		return "", err
	}
	if err := namespace.Do(n.Netns, func() error {
		if err := setAddr(inside, router); err != nil {
			return err
		}
		if err := sysctl("ipv4/conf/"+inside+"/route_localnet", "1"); err != nil {
			return err
		}
		return awaitCarrier(ctx, inside)
	}); err != nil {
		return "", err
	}
	return bridge, p.bridged(bridge, (*nftables.Conn).SetAddElements)
}

// Withdraw removes a further bridge; one that is not there is no error.
func (p *Pool) Withdraw(n Network, nth int) error {
	l, err := p.lease(n)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	if err := p.withdraw(n, nth); err != nil {
		return fmt.Errorf("remove bridge %d of job %q: %w", nth, n.Job, err)
	}
	return nil
}

func (p *Pool) withdraw(n Network, nth int) error {
	bridge, leg := p.further(n, nth)
	err := p.bridged(bridge, (*nftables.Conn).SetDeleteElements)
	if isGone(err) {
		err = nil
	}
	return errors.Join(err, removeLink(leg), removeLink(bridge))
}

// further names a further bridge and the leg of the job's namespace in it.
func (p *Pool) further(n Network, nth int) (bridge, leg string) {
	return fmt.Sprintf("%s-%d", n.Bridge, nth), fmt.Sprintf("%s-%d", p.config.link(routerLink, n.Slot), nth)
}

// furtherLinks finds all links that Extend made for a network, after taking
// back that frames may pass them.
func (p *Pool) furtherLinks(n Network) (names []string, err error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	leg := p.config.link(routerLink, n.Slot)
	for _, l := range links {
		name := l.Attrs().Name
		if strings.HasPrefix(name, n.Bridge+"-") {
			if err := p.bridged(name, (*nftables.Conn).SetDeleteElements); err != nil && !isGone(err) {
				return nil, fmt.Errorf("expel bridge %s: %w", name, err)
			}
			names = append(names, name)
		} else if strings.HasPrefix(name, leg+"-") {
			names = append(names, name)
		}
	}
	return names, nil
}

// bridges are all of a network's: its own, and those that Extend made.
func (p *Pool) bridges(n Network) ([]string, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all := []string{n.Bridge}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, n.Bridge+"-") {
			all = append(all, name)
		}
	}
	return all, nil
}

// bridged lets frames pass between the ports of a bridge, or no longer.
func (p *Pool) bridged(bridge string, op func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: p.config.table(), Family: nftables.TableFamilyINet}
	return errors.Join(
		op(conn, &nftables.Set{Table: table, Name: "bridges", Concatenation: true},
			[]nftables.SetElement{{Key: append(linkKey(bridge), linkKey(bridge)...)}}),
		conn.Flush(),
	)
}
