package builds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// networks are what RUN steps of a job can ask for. The node's is not among them.
func networks(j Job) map[pb.NetMode]network.Provider {
	own := network.NewNoneProvider()
	if j.Network != nil {
		own = provider{j.Network}
	}
	return map[pb.NetMode]network.Provider{pb.NetMode_UNSET: own, pb.NetMode_NONE: network.NewNoneProvider()}
}

// provider gives each RUN step a network namespace on the job's network.
type provider struct{ network Network }

func (p provider) New(ctx context.Context, _ string, _ network.NamespaceOptions) (network.Namespace, error) {
	ns, err := p.network.Join(ctx)
	if err != nil {
		return nil, fmt.Errorf("join the job's network: %w", err)
	}
	return joined{ns}, nil
}

func (provider) Close() error { return nil }

type joined struct{ Namespace }

func (j joined) Set(s *specs.Spec) error {
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = j.Path()
			return nil
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: j.Path()})
	return nil
}

func (joined) Sample() (*resourcestypes.NetworkSample, error) { return nil, nil }

// web is the job's network as berthd uses it in the job's stead, for ADD: what the job cannot reach, it cannot.
type web struct {
	network Network
	mu      sync.Mutex
	ns      Namespace
}

func (w *web) join(ctx context.Context) (string, error) {
	if w.network == nil {
		return "", fmt.Errorf("the job has no network: %w", errdefs.ErrPermissionDenied)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ns == nil {
		ns, err := w.network.Join(ctx)
		if err != nil {
			return "", fmt.Errorf("join the job's network: %w", err)
		}
		w.ns = ns
	}
	return w.ns.Path(), nil
}

func (w *web) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ns == nil {
		return nil
	}
	err := w.ns.Close()
	w.ns = nil
	return err
}

// dial connects from inside the job's network, by names as the job resolves them.
func (w *web) dial(ctx context.Context, network, address string) (net.Conn, error) {
	path, err := w.join(ctx)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("read address: %w", err)
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var errs []error
		for _, server := range w.network.Nameservers() {
			c, err := dialIn(ctx, path, network, net.JoinHostPort(server.String(), "53"))
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(append(errs, errors.New("no nameserver answers"))...)
	}}
	addrs, err := resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		c, err := dialIn(ctx, path, network, net.JoinHostPort(a.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// dialIn connects to an address that is no name: Go opens that socket on the thread that asks.
func dialIn(ctx context.Context, path, network, address string) (c net.Conn, err error) {
	err = namespace.Do(path, func() error {
		d := net.Dialer{Timeout: 30 * time.Second}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
