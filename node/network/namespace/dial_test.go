package namespace

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestDial connects to what is in a namespace, and to nothing else.
func TestDial(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	var inside net.Listener
	if err := Create(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		inside, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		inside.Close()
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for {
			c, err := inside.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("inside")) // who does not read it says so
			c.Close()
		}
	}()
	d := Dialer{Path: path}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, port, _ := net.SplitHostPort(inside.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1"} {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(host, err)
		}
		b := make([]byte, 16)
		n, _ := c.Read(b)
		c.Close()
		if string(b[:n]) != "inside" {
			t.Errorf("%s: read %q", host, b[:n])
		}
	}
	outside, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if c, err := d.DialContext(ctx, "tcp", outside.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connected to what is outside: %v, %v", c, err)
	}
	if c, err := d.DialContext(ctx, "tcp", "192.0.2.1:80"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("connected without a route: %v, %v", c, err)
	}
	if c, err := d.DialContext(ctx, "tcp", "[2001:db8::1]:80"); err == nil {
		t.Errorf("connected by IPv6: %v", c)
	}

	// A full backlog answers nothing; the caller need not wait for it.
	var deaf int
	if err := Do(path, func() (err error) {
		deaf, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(deaf, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		return unix.Listen(deaf, 0)
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(deaf)
	name, err := unix.Getsockname(deaf)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port)).String()
	given := errors.New("given up")
	waiting, cancel := context.WithTimeoutCause(ctx, 100*time.Millisecond, given)
	defer cancel()
	for err = nil; err == nil; { // the third finds no room for sure
		var c net.Conn
		if c, err = d.DialContext(waiting, "tcp", at); err == nil {
			defer c.Close()
		}
	}
	if !errors.Is(err, given) {
		t.Error(err)
	}
}
