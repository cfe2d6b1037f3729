package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// patience is how long each server gets, round by round. Clients commonly wait
// five seconds.
var patience = []time.Duration{time.Second, 2 * time.Second}

const totalPatience = 4500 * time.Millisecond

var errNoServers = errors.New("no name servers are known")

// forward asks servers one after the other, over the transport that the client
// used: so a truncated answer reaches the client, which comes again over TCP.
// It sends from the namespace of the process, where jobs' addresses are not
// reachable: a query cannot come back to the resolver.
func forward(ctx context.Context, network string, q *dns.Msg, servers []string) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errNoServers
	}
	ctx, cancel := context.WithTimeout(ctx, totalPatience)
	defer cancel()
	query := q.Copy()
	query.Id = dns.Id()
	var last *dns.Msg
	var errs []error
	for _, wait := range patience {
		again := false
		for _, server := range servers {
			m, err := ask(ctx, network, server, query, wait)
			if err != nil {
				var timeout net.Error
				again = again || errors.As(err, &timeout) && timeout.Timeout()
				errs = append(errs, err)
				continue
			}
			m.Id = q.Id
			if m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
				return m, nil
			}
			last = m // another server may know better
		}
		if last != nil {
			return last, nil
		}
		// Who refuses at once does so again.
		if !again || ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func ask(ctx context.Context, network, server string, q *dns.Msg, wait time.Duration) (*dns.Msg, error) {
	client := dns.Client{Net: network, Timeout: wait}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The client heeds ctx's deadline, not its end.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	m, _, err := client.ExchangeWithConnContext(ctx, q, conn)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	if m.Rcode == dns.RcodeSuccess && !sameQuestion(q, m) {
		return nil, fmt.Errorf("ask %s: answer to another question", server)
	}
	return m, nil
}

func sameQuestion(q, m *dns.Msg) bool {
	if len(m.Question) != 1 {
		return false
	}
	a, b := q.Question[0], m.Question[0]
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
