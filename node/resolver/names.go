package resolver

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
)

// ttl of own names in seconds. They change while a job runs, and asking again
// costs next to nothing.
const ttl = 5

// content is a zone made ready for lookups. It does not change.
type content struct {
	zone      Zone
	addrs     map[string][]netip.Addr // by canonical name
	names     map[string][]string     // by name below in-addr.arpa
	upstreams []string
}

func (z Zone) compile() (*content, error) {
	c := &content{zone: z, addrs: map[string][]netip.Addr{}, names: map[string][]string{}}
	refuse := func(format string, args ...any) (*content, error) {
		return nil, fmt.Errorf("zone: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !filepath.IsAbs(z.Netns) {
		return refuse("netns %q: expected an absolute path", z.Netns)
	}
	if !z.Addr.Is4() || z.Addr.IsUnspecified() {
		return refuse("addr %q: expected an IPv4 address", z.Addr)
	}
	for name, addrs := range z.Names {
		if _, ok := dns.IsDomainName(name); !ok || name == "" || name == "." {
			return refuse("name %q: not a domain name", name)
		}
		key := dns.CanonicalName(name)
		for _, a := range addrs {
			if !a.Is4() {
				return refuse("name %q: address %q: expected IPv4", name, a)
			}
			arpa, err := dns.ReverseAddr(a.String())
			if err != nil {
				return refuse("name %q: %w", name, err)
			}
			c.names[arpa] = append(c.names[arpa], key)
		}
		c.addrs[key] = append(c.addrs[key], addrs...)
	}
	for _, names := range c.names {
		slices.Sort(names) // maps have no order, answers should
	}
	for _, u := range z.Upstreams {
		server, err := serverAddr(u)
		if err != nil {
			return refuse("upstream %q: expected an address, perhaps with a port", u)
		}
		if addr := server.Addr().Unmap(); addr == z.Addr || addr.IsUnspecified() {
			return refuse("upstream %q: is the resolver itself", u)
		}
		c.upstreams = append(c.upstreams, server.String())
	}
	return c, nil
}

// answer returns nil for a name that is not the job's own.
func (c *content) answer(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	if question.Qclass != dns.ClassINET {
		return nil
	}
	name := dns.CanonicalName(question.Name)
	header := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: ttl}
	m := new(dns.Msg).SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true

	addrs, own := c.addrs[name]
	names, ownReverse := c.names[name]
	switch {
	case own:
		if question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY {
			header.Rrtype = dns.TypeA
			for _, a := range addrs {
				m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
			}
		}
	case ownReverse:
		if question.Qtype == dns.TypePTR || question.Qtype == dns.TypeANY {
			header.Rrtype = dns.TypePTR
			for _, n := range names {
				m.Answer = append(m.Answer, &dns.PTR{Hdr: header, Ptr: n})
			}
		}
	default:
		return nil
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(opt.UDPSize(), false)
	}
	return m
}
