package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Port is one of a job's own, which leads to one of its containers.
type Port struct {
	Protocol uint8 // of IP: 6 is TCP, 17 UDP
	Number   uint16
}

// Protocols that ports can be of, by their names.
var Protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// Publish makes a job's ports lead to containers: those given and no others.
// Connections that there are go on.
func Publish(n Network, ports map[Port]netip.AddrPort) error {
	if err := publish(n.Netns, ports); err != nil {
		return fmt.Errorf("publish ports of job %q: %w", n.Job, err)
	}
	return nil
}

func publish(netns string, ports map[Port]netip.AddrPort) error {
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: JobTable, Family: nftables.TableFamilyIPv4}
	set := &nftables.Set{Table: table, Name: JobPorts, IsMap: true, Concatenation: true}
	var elements []nftables.SetElement
	for port, to := range ports {
		elements = append(elements, nftables.SetElement{
			// Each part fills up four bytes.
			Key: []byte{port.Protocol, 0, 0, 0, byte(port.Number >> 8), byte(port.Number), 0, 0},
			Val: append(to.Addr().AsSlice(), byte(to.Port()>>8), byte(to.Port()), 0, 0),
		})
	}
	conn.FlushSet(set)
	if len(elements) > 0 {
		if err := conn.SetAddElements(set, elements); err != nil {
			return err
		}
	}
	return conn.Flush()
}

// isGone tells that what was to be removed from a table was not there.
func isGone(err error) bool { return errors.Is(err, unix.ENOENT) }
