package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
)

// Config says what the networks of one berthd look like.
type Config struct {
	// Instance is part of all names on the host, so that several berthd can
	// share one.
	Instance string
	// Subnet is where jobs' networks are cut from, a /24 each.
	Subnet netip.Prefix
	// Uplinks is where the addresses come from by which the node knows the
	// jobs, one each.
	Uplinks netip.Prefix
	// Pool is how many networks wait prepared.
	Pool int
	// Dir holds the files that namespaces are bound to.
	Dir string
	// MTU of all links; 0 means that of the node's default route.
	MTU int
	// Egress is what jobs may reach, by name of the profile.
	Egress map[string]Egress
}

// nodeAddr is the node's end of every uplink, the same for all of them: it
// never leaves the link.
var nodeAddr = netip.MustParseAddr("169.254.1.1")

// Kinds of links on the node. Names are kind, instance, slot, so that what a
// crash left behind is found by its name. IFNAMSIZ leaves room for four
// characters of instance, four digits of slot and three of endpoint.
const (
	bridgeLink   = "bj" // the job's bridge
	routerLink   = "bv" // the leg of the job's own namespace
	endpointLink = "be" // the leg of a service
	uplinkLink   = "bu" // the way out
)

var (
	instancePattern = regexp.MustCompile(`^[a-z0-9]{1,4}$`)
	profilePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
)

func (c Config) validate() error {
	if !instancePattern.MatchString(c.Instance) {
		return fmt.Errorf("network instance %q: expected one to four of a-z, 0-9: %w", c.Instance, errdefs.ErrInvalidArgument)
	}
	if !c.Subnet.Addr().Is4() || c.Subnet != c.Subnet.Masked() || c.Subnet.Bits() < 12 || c.Subnet.Bits() > 23 {
		return fmt.Errorf("network subnet %s: expected an IPv4 prefix between /12 and /23, host bits zero: %w", c.Subnet, errdefs.ErrInvalidArgument)
	}
	if !c.Uplinks.Addr().Is4() || c.Uplinks != c.Uplinks.Masked() || c.Uplinks.Bits() > c.Subnet.Bits()+8 {
		return fmt.Errorf("network uplinks %s: expected an IPv4 prefix of at least /%d, host bits zero: %w", c.Uplinks, c.Subnet.Bits()+8, errdefs.ErrInvalidArgument)
	}
	if c.Uplinks.Overlaps(c.Subnet) {
		return fmt.Errorf("network uplinks %s: overlap subnet %s: %w", c.Uplinks, c.Subnet, errdefs.ErrInvalidArgument)
	}
	if c.Pool < 0 || c.Pool > c.slots() {
		return fmt.Errorf("network pool %d: expected 0 to %d, the networks that %s holds: %w", c.Pool, c.slots(), c.Subnet, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("network directory %q: expected an absolute path: %w", c.Dir, errdefs.ErrInvalidArgument)
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535) {
		return fmt.Errorf("network mtu %d: expected 0 or 576 to 65535: %w", c.MTU, errdefs.ErrInvalidArgument)
	}
	return nil
}

// slots is how many networks fit. Slot 0 is not used, so that no job has a
// subnet or uplink ending in 0.
func (c Config) slots() int {
	return 1<<(24-c.Subnet.Bits()) - 1
}

// network is the description of a slot, complete but for the job.
func (c Config) network(slot int) Network {
	subnet := netip.PrefixFrom(add(c.Subnet.Addr(), slot<<8), 24)
	return Network{
		Slot:    slot,
		Netns:   c.netns(slot),
		Bridge:  c.link(bridgeLink, slot),
		Uplink:  c.link(uplinkLink, slot),
		Subnet:  subnet,
		Gateway: subnet.Addr().Next(),
		Address: add(c.Uplinks.Addr(), slot),
	}
}

func (c Config) link(kind string, slot int) string {
	return fmt.Sprintf("%s%s-%d", kind, c.Instance, slot)
}

func (c Config) netns(slot int) string {
	return filepath.Join(c.Dir, fmt.Sprintf("%s-%d", c.Instance, slot))
}

func (c Config) table() string {
	return "berth_" + c.Instance
}

func add(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
