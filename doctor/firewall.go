package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// firewall looks for rules of others that stop what jobs send.
func (n *node) firewall(ctx context.Context) []Check {
	if os.Geteuid() != 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	var checks []Check
	if _, err := exec.LookPath("iptables"); err == nil {
		forward, err := exec.CommandContext(ctx, "iptables", "-w", "-S").CombinedOutput()
		if err != nil {
			checks = append(checks, warn("iptables", "Update iptables, or load the module that it names.", "%v: %s", err, strings.TrimSpace(string(forward))))
		} else {
			checks = append(checks, n.checkForward(string(forward)))
		}
	}
	if _, err := exec.LookPath("nft"); err == nil {
		chains, err := exec.CommandContext(ctx, "nft", "-j", "list", "chains").CombinedOutput()
		if err != nil {
			checks = append(checks, warn("nftables", "Update nftables.", "%v: %s", err, strings.TrimSpace(string(chains))))
		} else {
			checks = append(checks, checkChains(chains))
		}
	}
	return checks
}

// checkForward reads the output of iptables -S. Docker sets the policy of
// FORWARD to DROP; berthd adds rules of its own there, or in DOCKER-USER.
func (n *node) checkForward(rules string) Check {
	const name = "iptables"
	drops, passes := false, false
	for line := range strings.Lines(rules) {
		f := strings.Fields(line)
		drops = drops || strings.TrimSpace(line) == "-P FORWARD DROP"
		passes = passes || len(f) > 3 && f[0] == "-A" && (f[1] == "FORWARD" || f[1] == "DOCKER-USER") &&
			strings.Contains(line, "-i bu"+n.config.Network.Instance+"-+ ")
	}
	switch {
	case !drops:
		return ok(name, "forwarding is not dropped")
	case passes:
		return ok(name, "forwarding is dropped by default; jobs have their exception")
	case n.berthd == nil:
		return ok(name, "forwarding is dropped by default; berthd adds an exception for jobs")
	}
	return fail(name, "Restart berthd, which adds its exception; jobs go on meanwhile.", "forwarding is dropped, and the exception for jobs is gone: they reach nothing outside")
}

// checkChains reads the output of nft -j list chains. What iptables shows is
// left out.
func checkChains(text []byte) Check {
	const name = "nftables"
	var list struct {
		Nftables []struct {
			Chain *struct {
				Family, Table, Name, Hook, Policy string
			}
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return warn(name, "Update nftables.", "its list of chains can not be read: %v", err)
	}
	var dropping []string
	for _, item := range list.Nftables {
		c := item.Chain
		if c == nil || c.Hook != "forward" || c.Policy != "drop" || (c.Family == "ip" || c.Family == "ip6") && c.Table == "filter" && c.Name == "FORWARD" {
			continue
		}
		dropping = append(dropping, fmt.Sprintf("%s %s %s", c.Family, c.Table, c.Name))
	}
	if dropping != nil {
		return warn(name, `Accept there what comes in by or goes out to the links "bu*" and "bj*".`, "forwarding is dropped by default in %s", strings.Join(dropping, ", "))
	}
	return ok(name, "no table drops forwarding by default")
}
