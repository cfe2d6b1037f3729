package doctor

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
)

// linkName is what berthd calls its links: kind, instance, slot, and more.
var linkName = regexp.MustCompile(`^b[jveu]([a-z0-9]{1,4})-\d{1,4}`)

// instanceOf is the network.instance of the berthd that a link belongs to.
func instanceOf(link string) (string, bool) {
	m := linkName.FindStringSubmatch(link)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// leftovers finds links of berthds that do not run.
func (n *node) leftovers(context.Context) []Check {
	const name = "leftovers"
	links, err := net.Interfaces()
	if err != nil {
		return []Check{warn(name, "Mount /sys and /proc.", "%v", err)}
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.Name
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return []Check{warn(name, "Mount /proc.", "%v", err)}
	}
	return checkLeftovers(names, string(sockets), n.config.Network.Instance)
}

// checkLeftovers knows a living berthd by the abstract socket that it locks
// its instance with.
func checkLeftovers(links []string, sockets, own string) []Check {
	const name = "leftovers"
	alive := map[string]bool{}
	for s := bufio.NewScanner(strings.NewReader(sockets)); s.Scan(); {
		if _, instance, found := strings.Cut(s.Text(), "@berth-network-"); found {
			alive[instance] = true
		}
	}
	dead := map[string]int{}
	for _, link := range links {
		if instance, ours := instanceOf(link); ours && !alive[instance] {
			dead[instance]++
		}
	}
	if len(dead) == 0 {
		return []Check{ok(name, "no network devices of a berthd that does not run")}
	}
	var checks []Check
	for _, instance := range slices.Sorted(maps.Keys(dead)) {
		remedy := "Start berthd, which keeps what its jobs use and removes the rest."
		if instance != own {
			remedy = fmt.Sprintf("Start the berthd with network.instance = %q, or remove them: ip link delete NAME.", instance)
		}
		checks = append(checks, warn(name, remedy, "%d network devices of instance %q, whose berthd does not run", dead[instance], instance))
	}
	return checks
}
