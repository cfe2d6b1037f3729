package network

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"text/template"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// JobTable is the nftables table (family ip) in every job's namespace, and
// JobPorts its map from protocol and port of the job to address and port of
// one of its containers.
const (
	JobTable = "berth"
	JobPorts = "pub"
)

var (
	//go:embed job.nft
	jobRules string

	//go:embed node.nft
	nodeText  string
	nodeRules = template.Must(template.New("node").Funcs(template.FuncMap{
		"join": func(s []string) string { return strings.Join(s, ", ") },
	}).Parse(nodeText))
)

// nft loads rules in one transaction.
func nft(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // not to load them after a successor's
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load nftables rules: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// installTable replaces the node's table by one that serves the given
// networks, without a moment between.
func (p *Pool) installTable(ctx context.Context, inUse []Network) error {
	data := struct {
		Table                  string
		Subnet, Uplinks        netip.Prefix
		BridgeLinks            string
		UplinkLinks            string
		Profiles               []verdicts
		Bridges, Node, Outside []string
	}{
		Table:       p.config.table(),
		Subnet:      p.config.Subnet,
		Uplinks:     p.config.Uplinks,
		BridgeLinks: bridgeLink + p.config.Instance + "-",
		UplinkLinks: uplinkLink + p.config.Instance + "-",
	}
	for _, name := range slices.Sorted(maps.Keys(p.config.Egress)) {
		v, err := p.config.Egress[name].verdicts(name)
		if err != nil {
			return err
		}
		data.Profiles = append(data.Profiles, v)
	}
	for _, n := range inUse {
		bridges, err := p.bridges(n)
		if err != nil {
			return err
		}
		for _, name := range bridges {
			data.Bridges = append(data.Bridges, fmt.Sprintf("%q . %q", name, name))
		}
		if _, ok := p.config.Egress[n.Profile]; !ok {
			p.log.WithField("job", n.Job).Warnf("profile %q is gone: its job reaches nothing any more", n.Profile)
			continue
		}
		key := fmt.Sprintf("%q . %s", n.Uplink, n.Address)
		data.Node = append(data.Node, key+" : jump node_"+n.Profile)
		data.Outside = append(data.Outside, key+" : jump outside_"+n.Profile)
	}
	var rules strings.Builder
	if err := nodeRules.Execute(&rules, data); err != nil {
		return fmt.Errorf("write nftables rules: %w", err)
	}
	return nft(ctx, rules.String())
}

// admit lets a network's traffic pass by its profile's rules.
func (p *Pool) admit(n Network) error {
	err := p.change((*nftables.Conn).SetAddElements, n)
	if err != nil {
		return fmt.Errorf("admit network %d: %w", n.Slot, err)
	}
	return nil
}

// expel stops all traffic of a network. One that is not admitted is no error.
func (p *Pool) expel(n Network) error {
	err := p.change((*nftables.Conn).SetDeleteElements, n)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("expel network %d: %w", n.Slot, err)
	}
	return nil
}

// change makes all of a network's elements come or go at once.
func (p *Pool) change(op func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error, n Network) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: p.config.table(), Family: nftables.TableFamilyINet}
	uplink := append(linkKey(n.Uplink), n.Address.AsSlice()...)
	jump := func(kind string) *expr.Verdict {
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: kind + "_" + n.Profile}
	}
	return errors.Join(
		op(conn, &nftables.Set{Table: table, Name: "bridges", Concatenation: true},
			[]nftables.SetElement{{Key: append(linkKey(n.Bridge), linkKey(n.Bridge)...)}}),
		op(conn, &nftables.Set{Table: table, Name: "node", Concatenation: true, IsMap: true},
			[]nftables.SetElement{{Key: uplink, VerdictData: jump("node")}}),
		op(conn, &nftables.Set{Table: table, Name: "outside", Concatenation: true, IsMap: true},
			[]nftables.SetElement{{Key: uplink, VerdictData: jump("outside")}}),
		conn.Flush(),
	)
}

func linkKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

func (p *Pool) removeTable() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("remove nftables table: %w", err)
	}
	conn.DelTable(&nftables.Table{Name: p.config.table(), Family: nftables.TableFamilyINet})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table: %w", err)
	}
	return nil
}
