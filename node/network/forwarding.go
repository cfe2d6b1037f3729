package network

import (
	"errors"
	"fmt"
	"os/exec"

	"github.com/coreos/go-iptables/iptables"
)

// AllowForwarding makes the host's iptables rules, where there are any, pass
// what the node's own table has let through. Docker and others set the policy
// of FORWARD to drop. It may be called again whenever they may have changed it.
func (p *Pool) AllowForwarding() error {
	ipt, err := newIPTables()
	if ipt == nil {
		return err
	}
	chain, err := forwardChain(ipt)
	if err != nil || chain == "" {
		return err
	}
	for _, rule := range p.forwardRules() {
		if err := ipt.InsertUnique("filter", chain, 1, rule...); err != nil {
			return fmt.Errorf("allow forwarding in %s: %w", chain, err)
		}
	}
	return nil
}

func (p *Pool) revokeForwarding() error {
	ipt, err := newIPTables()
	if ipt == nil {
		return err
	}
	var errs []error
	for _, chain := range []string{"FORWARD", "DOCKER-USER"} {
		if ok, err := ipt.ChainExists("filter", chain); err != nil || !ok {
			errs = append(errs, err)
			continue
		}
		for _, rule := range p.forwardRules() {
			errs = append(errs, ipt.DeleteIfExists("filter", chain, rule...))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("revoke forwarding: %w", err)
	}
	return nil
}

// newIPTables returns nil on a host without iptables.
func newIPTables() (*iptables.IPTables, error) {
	if _, err := exec.LookPath("iptables"); err != nil {
		return nil, nil
	}
	ipt, err := iptables.New(iptables.Timeout(5))
	if err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	return ipt, nil
}

// forwardChain is where accepting rules belong; empty where none are needed.
func forwardChain(ipt *iptables.IPTables) (string, error) {
	ok, err := ipt.ChainExists("filter", "DOCKER-USER")
	if err != nil {
		return "", fmt.Errorf("look for chain DOCKER-USER: %w", err)
	}
	if ok {
		return "DOCKER-USER", nil
	}
	rules, err := ipt.List("filter", "FORWARD")
	if err != nil {
		return "", fmt.Errorf("list chain FORWARD: %w", err)
	}
	if len(rules) == 1 && rules[0] == "-P FORWARD ACCEPT" {
		return "", nil
	}
	return "FORWARD", nil
}

func (p *Pool) forwardRules() [][]string {
	uplinks := uplinkLink + p.config.Instance + "-+"
	bridges := bridgeLink + p.config.Instance + "-+"
	return [][]string{
		{"-i", uplinks, "-j", "ACCEPT"},
		{"-o", uplinks, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
		// Bridged frames come here where bridge-nf-call-iptables is set.
		{"-i", bridges, "-o", bridges, "-j", "ACCEPT"},
	}
}
