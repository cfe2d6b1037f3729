package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Adopt keeps the given networks, which an earlier life of this instance made,
// destroys everything else that it left, and starts to fill the pool. Of a
// network that no longer exists (the host was restarted) only the slot is
// kept, until its Release.
func (p *Pool) Adopt(ctx context.Context, inUse []Network) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.stop != nil {
		return fmt.Errorf("adopt networks: pool is closed or has adopted: %w", errdefs.ErrFailedPrecondition)
	}
	slots := map[int]*lease{}
	for _, n := range inUse {
		if n.Slot < 1 || n.Job == "" || n.Bridge != p.config.link(bridgeLink, n.Slot) || n.Netns != p.config.netns(n.Slot) {
			return fmt.Errorf("adopt network %d of job %q: it is not of instance %q below %s: %w", n.Slot, n.Job, p.config.Instance, p.config.Dir, errdefs.ErrInvalidArgument)
		}
		if slots[n.Slot] != nil {
			return fmt.Errorf("adopt network %d of job %q: job %q has it too: %w", n.Slot, n.Job, slots[n.Slot].job, errdefs.ErrInvalidArgument)
		}
		slots[n.Slot] = &lease{job: n.Job}
	}
	if err := p.installTable(ctx, inUse); err != nil {
		return err
	}
	left, err := p.leftovers()
	if err != nil {
		return err
	}
	for slot, links := range left {
		if slots[slot] != nil {
			continue
		}
		p.log.WithField("slot", slot).Info("removing a network that no job has")
		if err := p.destroy(p.config.network(slot)); err != nil {
			return fmt.Errorf("remove network %d: %w", slot, err)
		}
		for _, name := range links {
			if err := removeLink(name); err != nil {
				return err
			}
		}
	}
	p.slots = slots
	refill, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	p.done.Go(func() { p.refill(refill) })
	return nil
}

// leftovers finds the slots that anything on the host is named after, and
// their links.
func (p *Pool) leftovers() (map[int][]string, error) {
	found := map[int][]string{}
	files, err := os.ReadDir(p.config.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for _, f := range files {
		if slot, ok := p.slotOf(f.Name(), ""); ok {
			found[slot] = nil
		}
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		for _, kind := range []string{bridgeLink, routerLink, endpointLink, uplinkLink} {
			if slot, ok := p.slotOf(name, kind); ok {
				found[slot] = append(found[slot], name)
			}
		}
	}
	return found, nil
}

// slotOf reads a slot from a name such as bjINSTANCE-7 or beINSTANCE-7-0.
func (p *Pool) slotOf(name, kind string) (int, bool) {
	rest, ok := strings.CutPrefix(name, kind+p.config.Instance+"-")
	if !ok {
		return 0, false
	}
	digits, _, _ := strings.Cut(rest, "-")
	slot, err := strconv.Atoi(digits)
	return slot, err == nil
}
