package resolver

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"github.com/sirupsen/logrus"
	"golang.org/x/net/netutil"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// A job gets no more than this at a time, so that it cannot starve others of
// sockets.
const (
	maxForwarded   = 128
	maxConnections = 64
)

// port that clients ask on.
const port = "53"

// place is where a zone listens. The namespace counts, not only its file.
type place struct {
	netns    string
	dev, ino uint64
	addr     string
}

func placeOf(z Zone) (place, error) {
	info, err := os.Stat(z.Netns)
	if os.IsNotExist(err) {
		return place{}, fmt.Errorf("zone: namespace %s: %w", z.Netns, errdefs.ErrNotFound)
	}
	if err != nil {
		return place{}, fmt.Errorf("zone: namespace: %w", err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return place{netns: z.Netns, dev: stat.Dev, ino: stat.Ino, addr: net.JoinHostPort(z.Addr.String(), port)}, nil
}

// zone is a Zone with open sockets.
type zone struct {
	place   place
	content atomic.Pointer[content]
	host    *hostServers
	log     *logrus.Entry

	ctx       context.Context // ends with the zone, and with it what is forwarded
	cancel    context.CancelFunc
	forwarded chan struct{}
	udp       net.PacketConn
	tcp       net.Listener
	servers   []*dns.Server
	done      sync.WaitGroup
}

func openZone(at place, c *content, host *hostServers, log *logrus.Entry) (*zone, error) {
	z := &zone{place: at, host: host, log: log, forwarded: make(chan struct{}, maxForwarded)}
	z.content.Store(c)
	err := namespace.Do(at.netns, func() (err error) {
		if z.udp, err = net.ListenPacket("udp4", at.addr); err != nil {
			return err
		}
		if z.tcp, err = net.Listen("tcp4", at.addr); err != nil {
			_ = z.udp.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open zone in %s: %w", at.netns, err)
	}
	z.ctx, z.cancel = context.WithCancel(context.Background())
	z.servers = []*dns.Server{
		{PacketConn: z.udp, Handler: z},
		{Listener: netutil.LimitListener(z.tcp, maxConnections), Handler: z, WriteTimeout: 2 * time.Second},
	}
	for _, s := range z.servers {
		started := make(chan error, 1)
		s.NotifyStartedFunc = func() { started <- nil }
		z.done.Go(func() {
			err := s.ActivateAndServe()
			if err != nil && z.ctx.Err() == nil {
				z.log.WithError(err).Error("the job has lost its name service")
			}
			select {
			case started <- err:
			default:
			}
		})
		if err := <-started; err != nil {
			z.close()
			return nil, fmt.Errorf("serve zone in %s: %w", at.netns, err)
		}
	}
	return z, nil
}

// close returns when no socket is left that would keep the namespace alive.
func (z *zone) close() {
	z.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, s := range z.servers {
		if err := s.ShutdownContext(ctx); err != nil {
			z.log.WithError(err).Warn("cannot stop the job's name service")
		}
	}
	_ = z.udp.Close() // where Shutdown has not
	_ = z.tcp.Close()
	z.done.Wait()
}

// ServeDNS implements dns.Handler.
func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	network, size := "udp", dns.MinMsgSize
	if _, ok := w.RemoteAddr().(*net.TCPAddr); ok {
		network, size = "tcp", dns.MaxMsgSize
	} else if opt := q.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	m := z.answer(network, q)
	m.Truncate(size)
	// The only failure is a client that has gone.
	_ = w.WriteMsg(m)
}

func (z *zone) answer(network string, q *dns.Msg) *dns.Msg {
	if len(q.Question) != 1 {
		return new(dns.Msg).SetRcodeFormatError(q)
	}
	c := z.content.Load()
	if m := c.answer(q); m != nil {
		return m
	}
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	failed.RecursionAvailable = true
	select {
	case z.forwarded <- struct{}{}:
		defer func() { <-z.forwarded }()
	default:
		return failed
	}
	servers := c.upstreams
	if len(servers) == 0 {
		servers = z.host.servers()
	}
	m, err := forward(z.ctx, network, q, servers)
	if err != nil {
		z.log.WithError(err).WithField("name", strings.ToLower(q.Question[0].Name)).Debug("cannot resolve")
		return failed
	}
	return m
}
