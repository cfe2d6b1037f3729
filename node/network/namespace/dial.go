package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dialer connects from a namespace, over IPv4 and TCP. No thread is in the
// namespace while a connection is being made.
type Dialer struct {
	// Path is what the namespace is bound to.
	Path string
	// Server is the name server, asked from within.
	Server netip.AddrPort
}

// DialContext connects to a host, by address or name, and port.
func (d Dialer) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("dial %s: port: %w", address, err)
	}
	addrs, err := d.Lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range addrs {
		conn, err := d.connect(ctx, netip.AddrPortFrom(addr, uint16(number)))
		if err == nil {
			return conn, nil
		}
		at := &net.TCPAddr{IP: addr.AsSlice(), Port: int(number)}
		if errs = append(errs, &net.OpError{Op: "dial", Net: "tcp", Addr: at, Err: err}); ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// Lookup finds the IPv4 addresses of a host, one at least.
func (d Dialer) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr = addr.Unmap(); !addr.Is4() {
			return nil, fmt.Errorf("dial %s: there is no IPv6", host)
		}
		return []netip.Addr{addr}, nil
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if strings.HasPrefix(network, "tcp") {
			return d.connect(ctx, d.Server)
		}
		var conn net.Conn
		err := Do(d.Path, func() (err error) {
			conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(d.Server))
			return err
		})
		return conn, err
	}}
	// With a dot: the search domains are the node's.
	addrs, err := r.LookupNetIP(ctx, "ip4", strings.TrimSuffix(host, ".")+".")
	if err != nil {
		var e *net.DNSError
		if errors.As(err, &e) {
			e.Name, e.Server = host, d.Server.String()
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// connect makes the socket in the namespace, and waits for it elsewhere.
func (d Dialer) connect(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var socket *os.File
	if err := Do(d.Path, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		socket = os.NewFile(uintptr(fd), "tcp:"+to.String())
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return errors.Join(os.NewSyscallError("connect", err), socket.Close())
		}
		return nil
	}); err != nil {
		return nil, err
	}
	defer socket.Close() // FileConn makes another descriptor of it
	defer context.AfterFunc(ctx, func() { _ = socket.SetWriteDeadline(time.Unix(1, 0)) })()
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	if err := raw.Write(func(fd uintptr) (done bool) {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || n != 0 {
			if err == nil {
				err = unix.Errno(n)
			}
			failed = os.NewSyscallError("connect", err)
			return true
		}
		_, err = unix.Getpeername(int(fd)) // fails as long as it is not connected
		return err == nil
	}); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return net.FileConn(socket)
}
