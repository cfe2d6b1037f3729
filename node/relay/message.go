package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// network is the kind of the control socket. A call is one packet, with the
// descriptors that it is about; answers are packets, too, up to one that says
// so. Relays of different builds speak it with each other, so fields and
// operations are only ever added.
const network = "unixpacket"

// maxPacket is more than any packet has: what is read ahead of two connections
// in base64, and names.
const maxPacket = 64 << 10

// maxFDs go with a packet.
const maxFDs = 2

// Operations.
const (
	opVersion = "version"
	opPut     = "put"     // keep a socket; with its descriptor
	opGet     = "get"     // give a socket
	opList    = "list"    // what there is of all jobs
	opRelease = "release" // end all of a job
	opJoin    = "join"    // pass a stream on; with the client's and the backend's descriptor
	opRelieve = "relieve" // give all sockets, and end with the last stream
	opTaken   = "taken"   // says who relieves, and has them
)

type request struct {
	Op     string `json:"op"`
	Job    string `json:"job,omitempty"`
	Name   string `json:"name,omitempty"`
	OneWay bool   `json:"one_way,omitempty"`
	// FromClient and FromBackend were read before.
	FromClient  []byte `json:"from_client,omitempty"`
	FromBackend []byte `json:"from_backend,omitempty"`
}

type answer struct {
	// Last says that there is no other; what was asked for came before.
	Last    bool   `json:"last,omitempty"`
	Error   string `json:"error,omitempty"`
	Class   string `json:"class,omitempty"`
	Version string `json:"version,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Job     string `json:"job,omitempty"`
	Name    string `json:"name,omitempty"`
	Streams int    `json:"streams,omitempty"`
}

// Classes of errors.
var classes = map[string]error{
	"not found": errdefs.ErrNotFound,
	"exhausted": errdefs.ErrResourceExhausted,
	"invalid":   errdefs.ErrInvalidArgument,
}

func failure(err error) answer {
	a := answer{Last: true, Error: err.Error()}
	for name, class := range classes {
		if errors.Is(err, class) {
			a.Class = name
		}
	}
	return a
}

func (a answer) err() error {
	if a.Error == "" {
		return nil
	}
	if class := classes[a.Class]; class != nil {
		return fmt.Errorf("relay: %s: %w", a.Error, class)
	}
	return fmt.Errorf("relay: %s", a.Error)
}

// send sends a packet with descriptors, which stay the caller's.
func send(conn *net.UnixConn, v any, fds ...int) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > maxPacket {
		return fmt.Errorf("a packet of %d bytes: %w", len(text), errdefs.ErrInvalidArgument)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	return err
}

// receive receives a packet and descriptors, which are the caller's from then
// on. The end of the connection is io.EOF.
func receive(conn *net.UnixConn, v any) (fds []int, err error) {
	text, rights := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(maxFDs*4))
	n, m, flags, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeFDs(fds)
			fds = nil
		}
	}()
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("read descriptors: %w", err)
		}
		fds = append(fds, more...)
	}
	if n == 0 && m == 0 {
		return fds, io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return fds, fmt.Errorf("a packet was cut off: %w", errdefs.ErrInvalidArgument)
	}
	return fds, json.Unmarshal(text[:n], v)
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// withFDs calls f with the descriptors of connections, which stay open
// meanwhile.
func withFDs(conns []syscall.Conn, f func(fds []int) error, fds ...int) error {
	if len(conns) == 0 {
		return f(fds)
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = withFDs(conns[1:], f, append(fds, int(fd))...) }); err != nil {
		return err
	}
	return inner
}
