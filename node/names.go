package node

import (
	"net/netip"
	"strings"

	"gitlab.com/berth-ci/berth/node/api"
)

// Zone is what a job's nameserver knows.
type Zone struct {
	// Netns and Address are where it listens.
	Netns   string
	Address netip.Addr
	// Hosts are the names of the job.
	Hosts map[string][]netip.Addr
	// DNS are the servers that know all others, the node's own if none.
	DNS []netip.Addr
}

// zoneOf gives a job the names of its own containers, and the extra hosts of
// its profile. A name of several services has the addresses of all of them.
func zoneOf(a api.Admission) Zone {
	z := Zone{Netns: a.Network.Netns, Address: a.Network.Address, Hosts: map[string][]netip.Addr{}}
	add := func(name string, addr netip.Addr) {
		name = strings.ToLower(name)
		z.Hosts[name] = append(z.Hosts[name], addr)
	}
	add("build", a.Network.Address)
	for i, s := range a.Grant.Services {
		for _, alias := range s.Aliases {
			add(alias, a.Network.Services[i].Address)
		}
	}
	// Both were checked with the configuration.
	for _, host := range a.Grant.Profile.ExtraHosts {
		name, addr, _ := strings.Cut(host, ":")
		if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
			add(name, ip)
		}
	}
	for _, server := range a.Grant.Profile.DNS {
		if ip, err := netip.ParseAddr(server); err == nil {
			z.DNS = append(z.DNS, ip)
		}
	}
	return z
}
