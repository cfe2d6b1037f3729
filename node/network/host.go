package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// checkOverlap refuses prefixes that the host already has a route into.
func checkOverlap(c Config) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		// A default route may also be written as two halves.
		if !ok || bits <= 1 {
			continue
		}
		name := ""
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		if strings.HasPrefix(name, uplinkLink+c.Instance+"-") {
			continue // of an earlier life of this instance
		}
		taken := netip.PrefixFrom(addr, bits)
		for key, ours := range map[string]netip.Prefix{"subnet": c.Subnet, "uplinks": c.Uplinks} {
			if ours.Overlaps(taken) {
				return fmt.Errorf("network %s %s overlaps the host's route to %s on %q, choose another: %w", key, ours, taken, name, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// defaultMTU is that of the link which the default route leaves by.
func defaultMTU() (int, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().MTU, nil
		}
	}
	return 1500, nil
}

// sysctl sets a value below /proc/sys/net as the calling thread's namespace
// sees it, if it is not already set.
func sysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", name)
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// noIPv6 keeps IPv6 off link, or off links to come when it is "default".
func noIPv6(link string) error {
	err := sysctl("ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	return err
}
