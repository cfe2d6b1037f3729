package proxy

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
)

// ownNetwork makes the docker network that stands for the job's, once it is
// needed: dockerd is told of the bridge that is there, and that the job's
// namespace is its router.
func (p *Proxy) ownNetwork(ctx context.Context) (id string, err error) {
	p.networkOnce.Lock()
	defer p.networkOnce.Unlock()
	if p.network != "" {
		return p.network, nil
	}
	var have struct{ ID string }
	err = p.Engine.Call(ctx, http.MethodGet, "/networks/"+p.job.Key, nil, nil, &have)
	if err == nil {
		p.network = have.ID
		return p.network, nil
	}
	if !errdefs.IsNotFound(err) {
		return "", err
	}
	if err := p.touch(http.MethodPost); err != nil {
		return "", err
	}
	n := p.job.Network
	half := netip.PrefixFrom(upper(n.Subnet), n.Subnet.Bits()+1)
	spec := p.spec(p.job.Key, n.Bridge)
	spec.Labels = map[string]string{NetworkLabel: p.job.Key}
	spec.IPAM = &network.IPAM{Config: []network.IPAMConfig{{
		Subnet: n.Subnet, IPRange: half, Gateway: n.Gateway.Next(),
		AuxAddress: map[string]netip.Addr{"DefaultGatewayIPv4": n.Gateway},
	}}}
	if err := p.Engine.Call(ctx, http.MethodPost, "/networks/create", nil, spec, &have); err != nil {
		return "", fmt.Errorf("make the job's network known to docker: %w", err)
	}
	p.network = have.ID
	return p.network, nil
}

// forgetNetwork has the job's network be looked for again.
func (p *Proxy) forgetNetwork() {
	p.networkOnce.Lock()
	defer p.networkOnce.Unlock()
	p.network = ""
}

// upper is the first address of the upper half of a network.
func upper(n netip.Prefix) netip.Addr {
	b := n.Addr().As4()
	bit := n.Bits()
	b[bit/8] |= 0x80 >> (bit % 8)
	return netip.AddrFrom4(b)
}

// spec is a network on a bridge that berthd has made, on which the node has no
// address and dockerd makes no rules.
func (p *Proxy) spec(name, bridge string) *network.CreateRequest {
	no := false
	return &network.CreateRequest{
		Name: name, Driver: "bridge", EnableIPv6: &no,
		Options: map[string]string{
			"com.docker.network.bridge.name":                 bridge,
			"com.docker.network.bridge.inhibit_ipv4":         "true",
			"com.docker.network.bridge.enable_ip_masquerade": "false",
		},
	}
}

// networkName resolves what a job calls a network to its name and id on the
// daemon.
func (c *call) networkName(ref string) (name, id string, err error) {
	switch ref {
	case "", "default", bridge:
		id, err := c.ownNetwork(c.ctx)
		return c.job.Key, id, err
	}
	c.objects.mu.Lock()
	for id, r := range c.objects.networks {
		if id == ref || r.Name == ref {
			c.objects.mu.Unlock()
			return c.inner(r.Name), id, nil
		}
	}
	id, ok := prefixed(c.objects.networks, ref, nil)
	if ok {
		name = c.inner(c.objects.networks[id].Name)
	}
	c.objects.mu.Unlock()
	if ok {
		return name, id, nil
	}
	if own, err := c.ownNetwork(c.ctx); err != nil || strings.HasPrefix(own, ref) && len(ref) >= 12 {
		return c.job.Key, own, err
	}
	return "", "", missing("network %s not found", ref)
}

// subnets are those in use by networks that jobs of the node made.
type subnets struct {
	mu   sync.Mutex
	used map[netip.Prefix]bool
}

func (n *Node) takeSubnet() (netip.Prefix, error) {
	n.subnets.mu.Lock()
	defer n.subnets.mu.Unlock()
	if n.subnets.used == nil {
		n.subnets.used = map[netip.Prefix]bool{}
	}
	all := n.Subnets
	bits := max(24, all.Bits())
	for addr := all.Masked().Addr(); all.Contains(addr); {
		one := netip.PrefixFrom(addr, bits)
		if !n.subnets.used[one] {
			n.subnets.used[one] = true
			return one, nil
		}
		b := addr.As4()
		next := uint32(b[0])<<24 + uint32(b[1])<<16 + uint32(b[2])<<8 + uint32(b[3]) + 1<<(32-bits)
		addr = netip.AddrFrom4([4]byte{byte(next >> 24), byte(next >> 16), byte(next >> 8), byte(next)})
	}
	return netip.Prefix{}, fmt.Errorf("all networks of %s are in use by jobs: enlarge docker.networks, or let jobs make fewer: %w", all, errdefs.ErrResourceExhausted)
}

func (n *Node) freeSubnet(s netip.Prefix) {
	n.subnets.mu.Lock()
	defer n.subnets.mu.Unlock()
	delete(n.subnets.used, s)
}

// HoldSubnets keeps the subnets of a job of an earlier berthd from being given
// out.
func (p *Proxy) HoldSubnets() {
	p.subnets.mu.Lock()
	defer p.subnets.mu.Unlock()
	if p.subnets.used == nil {
		p.subnets.used = map[netip.Prefix]bool{}
	}
	for _, r := range p.objects.networks {
		if s, err := netip.ParsePrefix(r.Subnet); err == nil {
			p.subnets.used[s] = true
		}
	}
}

// createNetwork is POST /networks/create.
func createNetwork(c *call) (err error) {
	var body network.CreateRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Name == "" || slices.Contains([]string{"default", bridge, "host", "none"}, body.Name) {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("operation is not permitted on predefined %s network", body.Name))
	}
	if strings.ContainsAny(body.Name, "/\x00") || len(body.Name) > 128 {
		return invalid("invalid network name %q", body.Name)
	}
	switch {
	case body.Driver != "" && body.Driver != "bridge" && body.Driver != "default":
		return refuse("network driver %s: networks are of driver bridge", body.Driver)
	case body.Scope != "" && body.Scope != "local":
		return refuse("network scope %s", body.Scope)
	case body.ConfigOnly || body.ConfigFrom != nil && body.ConfigFrom.Network != "":
		return refuse("networks as configuration of others")
	case body.Ingress:
		return refuse("networks of a swarm")
	}
	if err := checkLabels(body.Labels); err != nil {
		return err
	}
	if err := checkOptions(body.Options); err != nil {
		return err
	}
	c.objects.mu.Lock()
	if len(c.objects.networks) >= maxNetworks {
		c.objects.mu.Unlock()
		return refuse("more than %d networks of one job", maxNetworks)
	}
	nth, taken := 1, map[int]bool{}
	for _, r := range c.objects.networks {
		taken[r.Nth] = true
		if r.Name == body.Name {
			c.objects.mu.Unlock()
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("network with name %s already exists", body.Name))
		}
	}
	for taken[nth] {
		nth++
	}
	record := &networkRecord{Name: body.Name, Nth: nth}
	reserved := "reserved " + body.Name
	c.objects.networks[reserved] = record
	c.objects.mu.Unlock()
	id := ""
	defer func() {
		c.objects.mu.Lock()
		defer c.objects.mu.Unlock()
		delete(c.objects.networks, reserved)
		if err == nil {
			c.objects.networks[id] = record
		}
	}()

	spec := c.spec(c.inner(body.Name), "")
	spec.Internal, spec.Attachable, spec.Labels = body.Internal, body.Attachable, c.label(body.Labels)
	if mtu := body.Options[mtuOption]; mtu != "" {
		spec.Options[mtuOption] = mtu
	}
	c.finish()
	var v any
	var res head
	for range subnetTries {
		if v, res, err = c.tryNetwork(body.IPAM, spec, record); err == nil || record.Subnet == "" || !strings.Contains(err.Error(), "overlaps") {
			break
		}
		// Of someone else's on this daemon: it stays taken for as long as this lasts.
		if s, parseErr := netip.ParsePrefix(record.Subnet); parseErr == nil {
			defer c.freeSubnet(s)
		}
		record.Subnet = ""
	}
	if err != nil && record.Subnet == "" && strings.Contains(err.Error(), "overlaps") {
		// One dockerd has them all.
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("invalid pool request: %s overlaps with the subnet of another network, of this job or of one beside it on the node: choose another, or leave --subnet out", subnetsOf(body.IPAM)))
	}
	if err != nil {
		return err
	}
	id = text(v, "Id")
	return c.answer(res.StatusCode, v)
}

// subnetsOf are those that were asked for.
func subnetsOf(asked *network.IPAM) string {
	var all []string
	if asked != nil {
		for _, one := range asked.Config {
			all = append(all, one.Subnet.String())
		}
	}
	return strings.Join(all, ", ")
}

const (
	// maxNetworks is how many a job may make, as many as a dockerd of its own
	// had subnets for: those that there are are the node's.
	maxNetworks = 31
	// subnetTries is how many subnets are tried.
	subnetTries = 32
)

// tryNetwork makes a bridge and tells dockerd of it.
func (c *call) tryNetwork(asked *network.IPAM, spec *network.CreateRequest, record *networkRecord) (v any, res head, err error) {
	var router netip.Prefix
	if spec.IPAM, router, err = c.addressing(asked, record); err != nil {
		return nil, head{}, err
	}
	link, err := c.Networks.Extend(c.ctx, c.job.Network, record.Nth, router)
	if err == nil {
		spec.Options["com.docker.network.bridge.name"] = link
		if v, res, err = c.ask(http.MethodPost, "/networks/create", nil, spec); err == nil {
			id := text(v, "Id")
			if err = c.Ledger.Put(c.job.Key, ledger.Network, id, record); err != nil {
				_ = c.Engine.Call(c.ctx, http.MethodDelete, "/networks/"+escape(id), nil, nil, nil) // else its label tells
			}
		}
		if err != nil {
			if left := c.Networks.Withdraw(c.job.Network, record.Nth); left != nil {
				c.log.WithError(left).Warn("cannot remove a bridge before its job ends")
			}
		}
	}
	if err != nil && !strings.Contains(err.Error(), "overlaps") {
		if s, parseErr := netip.ParsePrefix(record.Subnet); parseErr == nil {
			c.freeSubnet(s)
		}
	}
	return v, res, err
}

const mtuOption = "com.docker.network.driver.mtu"

// checkOptions lets pass what changes nothing, and the MTU: where traffic goes
// is not dockerd's affair.
func checkOptions(options map[string]string) error {
	for name, value := range options {
		switch name {
		case mtuOption, "com.docker.network.bridge.enable_icc", "com.docker.network.bridge.enable_ip_masquerade",
			"com.docker.network.bridge.host_binding_ipv4", "com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6",
			"com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6":
		default:
			return refuse("network option %s=%s", name, value)
		}
	}
	return nil
}

// addressing is where containers of a network have their addresses, and the
// job's namespace its own. IPv6 there is none.
func (c *call) addressing(asked *network.IPAM, record *networkRecord) (*network.IPAM, netip.Prefix, error) {
	var config network.IPAMConfig
	if asked != nil {
		if asked.Driver != "" && asked.Driver != "default" || len(asked.Options) > 0 {
			return nil, netip.Prefix{}, refuse("an IPAM driver or options of one")
		}
		for _, one := range asked.Config {
			if one.Subnet.Addr().Is6() {
				continue
			}
			if config.Subnet.IsValid() {
				return nil, netip.Prefix{}, refuse("several IPv4 subnets of one network")
			}
			config = one
		}
	}
	if !config.Subnet.IsValid() {
		subnet, err := c.takeSubnet()
		if err != nil {
			return nil, netip.Prefix{}, err
		}
		config.Subnet, record.Subnet = subnet, subnet.String()
	} else if config.Subnet != config.Subnet.Masked() || config.Subnet.Bits() > 30 || config.Subnet.Bits() < 8 {
		return nil, netip.Prefix{}, invalid("invalid subnet %s: expected a network of /8 to /30, host bits zero", config.Subnet)
	}
	if record.Subnet == "" {
		// Else a job could take what others are about to get.
		for _, reserved := range c.Reserved {
			if config.Subnet.Overlaps(reserved) {
				return nil, netip.Prefix{}, invalid("invalid pool request: %s overlaps with %s, which the node gives to jobs itself: choose another, or leave --subnet out", config.Subnet, reserved)
			}
		}
	}
	if !config.Gateway.IsValid() {
		config.Gateway = config.Subnet.Addr().Next()
	}
	return &network.IPAM{Config: []network.IPAMConfig{config}}, netip.PrefixFrom(config.Gateway, config.Subnet.Bits()), nil
}

// removeNetwork is DELETE /networks/{id}.
func removeNetwork(c *call) error {
	_, id, err := c.networkName(c.params[0])
	if err != nil {
		return err
	}
	if err := c.dropNetwork(id); err != nil {
		return err
	}
	c.begin(http.StatusNoContent)
	return nil
}

// dropNetwork removes a network that the job made.
func (c *call) dropNetwork(id string) error {
	c.objects.mu.Lock()
	record := c.objects.networks[id]
	c.objects.mu.Unlock()
	if record == nil {
		return errdefs.ErrPermissionDenied.WithMessage("bridge is a pre-defined network and cannot be removed")
	}
	res, err := c.send(http.MethodDelete, "/networks/"+escape(id), nil, nil)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err == nil {
		res.Body.Close()
	}
	if err := c.Networks.Withdraw(c.job.Network, record.Nth); err != nil {
		return err
	}
	if s, err := netip.ParsePrefix(record.Subnet); err == nil {
		c.freeSubnet(s)
	}
	c.objects.mu.Lock()
	delete(c.objects.networks, id)
	c.objects.mu.Unlock()
	return c.Ledger.Delete(c.job.Key, ledger.Network, id)
}

// pruneNetworks is POST /networks/prune: those that no container is on.
func pruneNetworks(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	f.add("label", JobLabel+"="+c.job.Key)
	var all []network.Summary
	only := filters{"label": f["label"]}
	if err := c.Engine.Call(c.ctx, http.MethodGet, "/networks", only.into(nil), nil, &all); err != nil {
		return err
	}
	answer := struct{ NetworksDeleted []string }{}
	for _, n := range all {
		c.objects.mu.Lock()
		record := c.objects.networks[n.ID]
		c.objects.mu.Unlock()
		if record == nil {
			continue
		}
		var about network.Inspect
		if err := c.Engine.Call(c.ctx, http.MethodGet, "/networks/"+n.ID, nil, nil, &about); err != nil || len(about.Containers) > 0 {
			continue
		}
		if c.dropNetwork(n.ID) == nil { // else it is in use
			answer.NetworksDeleted = append(answer.NetworksDeleted, record.Name)
		}
	}
	return c.answer(http.StatusOK, answer)
}

// connectNetwork is POST /networks/{id}/connect.
func connectNetwork(c *call) error {
	_, id, err := c.networkName(c.params[0])
	if err != nil {
		return err
	}
	var body network.ConnectRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	container, record, err := c.containerRecord(body.Container)
	if err != nil {
		return err
	}
	body.Container = container
	var links []string
	if e := body.EndpointConfig; e != nil {
		if len(e.DriverOpts) > 0 {
			return refuse("driver options of an endpoint")
		}
		if links, err = c.links(e.Links); err != nil {
			return err
		}
	}
	body.EndpointConfig = endpoint(body.EndpointConfig, record.Name, links)
	res, err := c.send(http.MethodPost, "/networks/"+escape(id)+"/connect", nil, body)
	if err != nil {
		return err
	}
	c.settle(c.ctx, container)
	return c.reply(res)
}

// disconnectNetwork is POST /networks/{id}/disconnect.
func disconnectNetwork(c *call) error {
	_, id, err := c.networkName(c.params[0])
	if err != nil {
		return err
	}
	var body network.DisconnectRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Container, err = c.container(body.Container); err != nil {
		return err
	}
	res, err := c.send(http.MethodPost, "/networks/"+escape(id)+"/disconnect", nil, body)
	if err != nil {
		return err
	}
	c.settle(c.ctx, body.Container)
	return c.reply(res)
}

// listNetworks is GET /networks.
func listNetworks(c *call) error {
	own, err := c.ownNetwork(c.ctx)
	if err != nil {
		return err
	}
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	named := f.take("name")
	ids := f.take("id")
	c.query = f.into(c.query)
	return c.rewritten("/networks", func(v any) any {
		kept := []any{}
		for _, one := range list(v) {
			m := object(one)
			if !c.outerNetwork(m, own) {
				continue
			}
			has := func(values []string, key string) bool {
				return len(values) == 0 || slices.ContainsFunc(values, func(part string) bool { return strings.Contains(text(m, key), part) })
			}
			if has(named, "Name") && has(ids, "Id") {
				kept = append(kept, m)
			}
		}
		return kept
	})
}

// outerNetwork rewrites a network, and tells whether the job sees it.
func (c *call) outerNetwork(m map[string]any, own string) bool {
	id, name := text(m, "Id"), text(m, "Name")
	c.objects.mu.Lock()
	record := c.objects.networks[id]
	c.objects.mu.Unlock()
	switch {
	case record != nil:
		m["Name"] = record.Name
	case id == own:
		m["Name"] = bridge
		c.outerIPAM(object(m["IPAM"]))
	case name == "host" || name == "none":
	default:
		return false
	}
	if options := object(m["Options"]); options != nil {
		maps.DeleteFunc(options, func(key string, _ any) bool { return strings.HasPrefix(key, "com.docker.network.bridge.") })
	}
	c.outerLabels(m)
	containers := object(m["Containers"])
	for id, endpoint := range containers {
		if _, ok := c.owns(id); !ok {
			delete(containers, id)
			continue
		}
		if e := object(endpoint); e != nil {
			e["Name"] = c.outer(text(e, "Name"))
		}
	}
	return true
}

// outerIPAM tells of the job's namespace as the gateway, which it is: dockerd
// is told so in another way. Clients in containers look for published ports
// there.
func (c *call) outerIPAM(m map[string]any) {
	for _, config := range list(m["Config"]) {
		if one := object(config); one != nil {
			one["Gateway"] = c.job.Network.Gateway.String()
			delete(one, "AuxiliaryAddresses")
		}
	}
}

// inspectNetwork is GET /networks/{id}.
func inspectNetwork(c *call) error {
	ref := c.params[0]
	own, err := c.ownNetwork(c.ctx)
	if err != nil {
		return err
	}
	id := ref
	if ref != "host" && ref != "none" {
		if _, id, err = c.networkName(ref); err != nil {
			return err
		}
	}
	return c.rewritten("/networks/"+escape(id), func(v any) any {
		c.outerNetwork(object(v), own)
		return v
	})
}
