package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Egress is what the jobs of a profile may reach. Allow is looked at first,
// then Deny, then Default. Link-local addresses, and so a cloud's metadata
// service, are denied unless Allow names them.
type Egress struct {
	// Node lists ports of the node, such as "tcp/5000" or "udp/6000-6010".
	Node []string
	// Allow and Deny list destinations, such as "10.0.0.0/8" or
	// "192.0.2.7 tcp/443".
	Allow, Deny []string
	// Default is "allow" or "deny"; empty means "allow".
	Default string
}

// verdicts is an Egress as statements of nft.
type verdicts struct {
	Profile       string
	Node, Outside []string
	Default       string
}

func (e Egress) verdicts(profile string) (verdicts, error) {
	v := verdicts{Profile: profile, Default: "accept"}
	if !profilePattern.MatchString(profile) {
		return v, fmt.Errorf("egress of profile %q: expected a name of letters, digits and _.-: %w", profile, errdefs.ErrInvalidArgument)
	}
	fail := func(key string, err error) (verdicts, error) {
		return v, fmt.Errorf("egress of profile %q: %s: %w: %w", profile, key, err, errdefs.ErrInvalidArgument)
	}
	switch e.Default {
	case "", "allow":
	case "deny":
		v.Default = "drop"
	default:
		return fail("default", fmt.Errorf("%q: expected allow or deny", e.Default))
	}
	for _, s := range e.Node {
		m, err := portMatch(s)
		if err != nil {
			return fail("node", err)
		}
		v.Node = append(v.Node, m+" accept")
	}
	for _, s := range e.Allow {
		m, err := destinationMatch(s)
		if err != nil {
			return fail("allow", err)
		}
		v.Outside = append(v.Outside, m+" accept")
	}
	for _, s := range e.Deny {
		m, err := destinationMatch(s)
		if err != nil {
			return fail("deny", err)
		}
		v.Outside = append(v.Outside, m+" drop")
	}
	return v, nil
}

// portMatch turns "tcp/5000" into "tcp dport 5000".
func portMatch(s string) (string, error) {
	proto, ports, _ := strings.Cut(s, "/")
	first, last, span := strings.Cut(ports, "-")
	if !span {
		last = first
	}
	lo, err1 := strconv.ParseUint(first, 10, 16)
	hi, err2 := strconv.ParseUint(last, 10, 16)
	if (proto != "tcp" && proto != "udp") || err1 != nil || err2 != nil || lo == 0 || lo > hi {
		return "", fmt.Errorf("%q: expected a port such as tcp/443 or udp/6000-6010", s)
	}
	if lo == hi {
		return fmt.Sprintf("%s dport %d", proto, lo), nil
	}
	return fmt.Sprintf("%s dport %d-%d", proto, lo, hi), nil
}

// destinationMatch turns "10.0.0.0/8 tcp/443" into
// "ip daddr 10.0.0.0/8 tcp dport 443".
func destinationMatch(s string) (string, error) {
	fields := strings.Fields(s)
	if len(fields) == 0 || len(fields) > 2 {
		return "", fmt.Errorf("%q: expected an address or prefix, and perhaps a port", s)
	}
	prefix, err := netip.ParsePrefix(fields[0])
	if err != nil {
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			return "", fmt.Errorf("%q: expected an address or prefix such as 10.0.0.0/8", s)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if !prefix.Addr().Is4() {
		return "", fmt.Errorf("%q: expected IPv4: jobs have no IPv6", s)
	}
	match := "ip daddr " + prefix.Masked().String()
	if len(fields) == 1 {
		return match, nil
	}
	port, err := portMatch(fields[1])
	return match + " " + port, err
}
