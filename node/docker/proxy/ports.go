package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	berthnetwork "gitlab.com/berth-ci/berth/node/network"
)

// Ports that containers publish are ports of the job's network namespace: a
// table in its rules leads them to the containers. dockerd publishes nothing.

// binding is a port that a container is to publish.
type binding struct {
	To network.Port `json:"to"`
	// Number is 0 for any.
	Number uint16 `json:"number,omitempty"`
	// Address of the host that was asked for. It is told again, and does not
	// count: the job's own are all there are.
	Address string `json:"address,omitempty"`
}

// bindingsOf reads what a job asks for.
func bindingsOf(m network.PortMap) (all []binding, err error) {
	for _, port := range slices.SortedFunc(maps.Keys(m), func(a, b network.Port) int { return int(a.Num()) - int(b.Num()) }) {
		if _, ok := berthnetwork.Protocols[protocol(port.Proto())]; !ok {
			return nil, invalid("invalid port %s: its protocol is not tcp, udp or sctp", port)
		}
		asked := m[port]
		if len(asked) == 0 {
			asked = []network.PortBinding{{}}
		}
		for _, b := range asked {
			one := binding{To: port}
			if b.HostPort != "" {
				n, err := strconv.ParseUint(b.HostPort, 10, 16)
				if err != nil {
					return nil, invalid("invalid host port %q of %s: Berth publishes single ports", b.HostPort, port)
				}
				one.Number = uint16(n)
			}
			// Of several addresses with one port, one entry is enough.
			if !slices.ContainsFunc(all, func(other binding) bool { return other.To == one.To && other.Number == one.Number }) {
				if b.HostIP.IsValid() {
					one.Address = b.HostIP.String()
				}
				all = append(all, one)
			}
		}
	}
	return all, nil
}

// publishedPort is a port of the job's that leads to a container.
type publishedPort struct {
	container string
	to        network.Port
	number    uint16
	asked     string     // the host's address
	addr      netip.Addr // zero while it is reserved
}

// host is the address that the port is said to be at.
func (p publishedPort) host() string {
	if p.asked == "" {
		return "0.0.0.0"
	}
	return p.asked
}

func (p publishedPort) text() string { return strconv.Itoa(int(p.number)) }

func (p publishedPort) key() berthnetwork.Port {
	return berthnetwork.Port{Protocol: berthnetwork.Protocols[protocol(p.to.Proto())], Number: p.number}
}

// ports are those that the job's containers have, and their names.
type ports struct {
	mu  sync.Mutex
	all map[berthnetwork.Port]publishedPort
	// addrs are the addresses of the containers that run, by their names.
	addrs map[string]map[string]netip.Addr
	// publishing keeps what is written in order.
	publishing sync.Mutex
}

// of lists a container's ports.
func (p *ports) of(id string) (all []publishedPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.all {
		if one.container == id {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b publishedPort) int {
		return (int(a.to.Num())-int(b.to.Num()))<<16 + int(a.number) - int(b.number)
	})
	return all
}

// Any port is chosen from where docker does it.
const (
	firstFree = 32768
	lastFree  = 60999
)

// take reserves ports for a container: those asked for, and any for the rest.
func (p *ports) take(id, name string, wanted []binding) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[berthnetwork.Port]publishedPort{}
	}
	taken := map[berthnetwork.Port]publishedPort{}
	for _, b := range wanted {
		one := publishedPort{container: id, to: b.To, number: b.Number, asked: b.Address}
		free := func() bool {
			other, ok := p.all[one.key()]
			_, twice := taken[one.key()]
			return !twice && (!ok || other.container == id)
		}
		if b.Number == 0 {
			for i, start := 0, rand.IntN(lastFree-firstFree); i < lastFree-firstFree; i++ {
				if one.number = uint16(firstFree + (start+i)%(lastFree-firstFree)); free() {
					break
				}
			}
		}
		if !free() {
			// In dockerd's words; it would tell of the endpoint rather than the container.
			return errdefs.ErrInternal.WithMessage(fmt.Sprintf("failed to set up container networking: driver failed programming external connectivity on endpoint %s (%s): Bind for %s:%d failed: port is already allocated",
				name, id, one.host(), one.number))
		}
		taken[one.key()] = one
	}
	maps.Copy(p.all, taken)
	return nil
}

// inspected is what is to be known of a container that may run.
type inspected struct {
	Name   string
	State  struct{ Running bool }
	Config struct {
		Hostname     string
		ExposedPorts map[network.Port]struct{}
	}
	NetworkSettings struct {
		Networks map[string]struct {
			IPAddress string
			Aliases   []string
			DNSNames  []string
		}
	}
}

func (p *Proxy) inspect(ctx context.Context, id string) (inspected, error) {
	var i inspected
	err := p.Engine.Call(ctx, http.MethodGet, "/containers/"+id+"/json", nil, nil, &i)
	return i, err
}

// reserve takes the ports of a container that is to start.
func (p *Proxy) reserve(ctx context.Context, id string) error {
	record, ok := p.owns(id)
	if !ok || len(record.Bindings) == 0 && !record.PublishAll {
		return nil
	}
	if len(p.ports.of(id)) > 0 {
		return nil // it runs already
	}
	wanted := slices.Clone(record.Bindings)
	if record.PublishAll {
		i, err := p.inspect(ctx, id)
		if err != nil {
			return err
		}
		for port := range i.Config.ExposedPorts {
			if !slices.ContainsFunc(wanted, func(b binding) bool { return b.To == port }) {
				wanted = append(wanted, binding{To: port})
			}
		}
	}
	return p.ports.take(id, record.Name, wanted)
}

// started makes the ports of a container that runs lead to it, and its names
// known. One that has ended meanwhile has none.
func (p *Proxy) started(ctx context.Context, id string) error {
	i, err := p.inspect(ctx, id)
	if errdefs.IsNotFound(err) {
		p.stopped(id) // it ran and is gone
		return nil
	}
	if err != nil {
		return err
	}
	if !i.State.Running {
		p.stopped(id)
		return nil
	}
	if err := p.reserve(ctx, id); err != nil { // it was restarted
		return err
	}
	addr, known := p.addresses(i)
	p.ports.mu.Lock()
	for key, one := range p.ports.all {
		if one.container == id {
			one.addr = addr
			p.ports.all[key] = one
		}
	}
	if p.ports.addrs == nil {
		p.ports.addrs = map[string]map[string]netip.Addr{}
	}
	p.ports.addrs[id] = known
	p.ports.mu.Unlock()
	return p.publish(ctx)
}

// addresses are where a container is: the one that its ports lead to, and
// those of its names.
func (p *Proxy) addresses(i inspected) (first netip.Addr, known map[string]netip.Addr) {
	known = map[string]netip.Addr{}
	for _, name := range slices.Sorted(maps.Keys(i.NetworkSettings.Networks)) {
		n := i.NetworkSettings.Networks[name]
		addr, err := netip.ParseAddr(n.IPAddress)
		if err != nil {
			continue
		}
		if !first.IsValid() {
			first = addr
		}
		for _, alias := range slices.Concat([]string{p.outer(i.Name)[1:]}, n.Aliases, n.DNSNames) {
			if alias = p.outer(alias); known[alias] == (netip.Addr{}) {
				known[alias] = addr
			}
		}
	}
	return first, known
}

// stopped frees the ports and names of a container.
func (p *Proxy) stopped(id string) {
	p.ports.mu.Lock()
	before := len(p.ports.all) + len(p.ports.addrs)
	maps.DeleteFunc(p.ports.all, func(_ berthnetwork.Port, one publishedPort) bool { return one.container == id })
	delete(p.ports.addrs, id)
	changed := before != len(p.ports.all)+len(p.ports.addrs)
	p.ports.mu.Unlock()
	if !changed {
		return
	}
	if err := p.publish(context.Background()); err != nil {
		p.log.WithError(err).Warn("cannot take back ports of a container")
	}
}

// settle brings what is known of a container up to date.
func (p *Proxy) settle(ctx context.Context, id string) {
	if err := p.started(ctx, id); err != nil && !errors.Is(err, context.Canceled) {
		p.log.WithError(err).Warn("cannot follow a container")
	}
}

// publish writes the ports, and the names where they changed.
func (p *Proxy) publish(ctx context.Context) error {
	p.ports.publishing.Lock()
	defer p.ports.publishing.Unlock()
	p.ports.mu.Lock()
	table := map[berthnetwork.Port]netip.AddrPort{}
	for key, one := range p.ports.all {
		if one.addr.IsValid() {
			table[key] = netip.AddrPortFrom(one.addr, one.to.Num())
		}
	}
	p.ports.mu.Unlock()
	if err := berthnetwork.Publish(p.job.Network, table); err != nil {
		return err
	}
	return p.announceLocked(ctx)
}

// hostName is one that can be asked for.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?){0,3}$`)

// announce makes the names of the containers that run known to the job.
func (p *Proxy) announce(ctx context.Context) {
	p.ports.publishing.Lock()
	defer p.ports.publishing.Unlock()
	if err := p.announceLocked(ctx); err != nil {
		p.log.WithError(err).Warn("cannot make the names of containers known")
	}
}

func (p *Proxy) announceLocked(ctx context.Context) error {
	p.ports.mu.Lock()
	known := map[string][]netip.Addr{}
	for id, addrs := range p.ports.addrs {
		for name, addr := range addrs {
			if hostName.MatchString(name) {
				known[name] = append(known[name], addr)
			}
		}
		if r, ok := p.owns(id); ok && hostName.MatchString(r.Name) && len(known[r.Name]) == 0 {
			for _, addr := range addrs {
				known[r.Name] = []netip.Addr{addr}
				break
			}
		}
	}
	p.ports.mu.Unlock()
	if p.Names == nil {
		return nil
	}
	return p.Names(ctx, p.job.Key, known)
}
