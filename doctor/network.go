package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

func (n *node) network(ctx context.Context) []Check {
	checks := []Check{n.subnets(), n.forwarding()}
	if os.Geteuid() != 0 {
		return checks
	}
	if err := tryNetwork(ctx, n.Timeout); err != nil {
		return append(checks, fail("job networks", "Install nftables, and boot a kernel with veth, bridge, nf_tables, nft_nat, nft_masq and nft_fib (modprobe says what is missing).", "%v", err))
	}
	return append(checks, ok("job networks", "namespace, veth, bridge, nftables with nat and masquerade work"))
}

// rules uses of nftables what the tables of berthd use.
const rules = `table inet berth_doctor {
	map node {
		type ifname . ipv4_addr : verdict
		elements = { "b" . 192.0.2.1 : accept }
	}
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		fib daddr type local iifname . ip saddr vmap @node
		ct state established,related accept
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 192.0.2.0/24 oifname != "b*" masquerade
	}
}
table ip berth_doctor {
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		dnat ip to meta l4proto . th dport map @ports
	}
}
`

// tryNetwork makes in a namespace of its own what jobs' networks are made of.
func tryNetwork(ctx context.Context, timeout time.Duration) (err error) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "berth-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ns := filepath.Join(dir, "net")
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = namespace.Create(ns, func() error {
		for _, kind := range []string{"veth", "bridge"} {
			if err := addLink(kind); err != nil {
				return fmt.Errorf("make a %s: %w", kind, err)
			}
		}
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("load rules: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return namespace.Remove(ns)
}

// addLink makes a link of a kind, as `ip link add type KIND` does.
func addLink(kind string) error {
	attributes := netlink.NewAttributeEncoder()
	attributes.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(unix.IFLA_INFO_KIND, kind)
		return nil
	})
	encoded, err := attributes.Encode()
	if err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
		Data:   append(make([]byte, unix.SizeofIfInfomsg), encoded...),
	})
	return errors.Join(err, conn.Close())
}

// subnets finds addresses of the node in what jobs get addresses from.
func (n *node) subnets() Check {
	const name = "subnets"
	links, err := net.Interfaces()
	if err != nil {
		return warn(name, "Mount /sys and /proc.", "%v", err)
	}
	for _, link := range links {
		if _, ours := instanceOf(link.Name); ours {
			continue
		}
		addrs, err := link.Addrs()
		if err != nil {
			continue // it is gone
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			for key, jobs := range map[string]netip.Prefix{"network.subnet": n.config.Network.Subnet, "network.uplinks": n.config.Network.Uplinks} {
				if p = p.Masked(); jobs.Overlaps(p) {
					return fail(name, "Set "+key+" in "+n.Config+" to a network that nothing else uses.", "%s (%v) overlaps %v of %s", key, jobs, p, link.Name)
				}
			}
		}
	}
	return ok(name, "%v and %v are free", n.config.Network.Subnet, n.config.Network.Uplinks)
}

func (n *node) forwarding() Check {
	const name = "ip_forward"
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	switch on := strings.TrimSpace(string(b)) == "1"; {
	case err != nil:
		return fail(name, "Mount /proc.", "%v", err)
	case on:
		return ok(name, "on")
	case n.berthd == nil:
		return ok(name, "off; berthd switches it on")
	}
	return fail(name, "Set net.ipv4.ip_forward = 1 in /etc/sysctl.d, and find out what switched it off after berthd began.", "off: jobs reach nothing outside")
}

// nameservers asks those of the node, which jobs' questions are passed on to.
func (n *node) nameservers(ctx context.Context) []Check {
	const name = "nameservers"
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return []Check{fail(name, "Name a nameserver in it.", "%v", err)}
	}
	servers := parseResolvConf(string(b))
	if len(servers) == 0 {
		return []Check{fail(name, "Name one in /etc/resolv.conf, or set dns in the profiles.", "none in /etc/resolv.conf")}
	}
	var silent []string
	for _, server := range servers {
		if err := n.ask(ctx, server); err != nil {
			silent = append(silent, err.Error())
		}
	}
	switch {
	case len(silent) == len(servers):
		return []Check{warn(name, "Name one that answers in /etc/resolv.conf, or set dns in the profiles.", "none answers: %s", strings.Join(silent, "; "))}
	case len(silent) > 0:
		return []Check{warn(name, "Remove it from /etc/resolv.conf: jobs wait for it before they ask the next.", "%s", strings.Join(silent, "; "))}
	}
	return []Check{ok(name, "%s", strings.Join(servers, ", "))}
}

// ask wants any answer; that there is no such name is one, too.
func (n *node) ask(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(server, "53"))
	}}
	_, err := r.LookupHost(ctx, "gitlab.com.")
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", server, err)
	}
	return nil
}

func parseResolvConf(text string) []string {
	var servers []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return servers
}
