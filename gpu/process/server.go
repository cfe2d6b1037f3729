// Package process runs a gpu.Driver in a process of its own: Serve is that
// process's side, Driver the other. They speak JSON-RPC on the process's
// stdin and stdout, so it ends with who started it.
package process

import (
	"context"
	"errors"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/gpu"
)

// name of the service on the wire.
const name = "GPU"

// Serve answers calls until the other side ends. A driver that cannot be
// opened is the answer to all of them.
func Serve(conn io.ReadWriteCloser, open func() (gpu.Driver, error)) error {
	s := &service{}
	s.driver, s.err = open()
	server := rpc.NewServer()
	if err := server.RegisterName(name, s); err != nil {
		return err
	}
	server.ServeCodec(jsonrpc.NewServerCodec(conn))
	return nil
}

// Answer is what comes back from a call: what was asked for, or an error.
type Answer struct {
	Error    string                 `json:"error,omitempty"`
	Class    string                 `json:"class,omitempty"`
	Stock    *gpu.Inventory         `json:"stock,omitempty"`
	Readings map[string]gpu.Reading `json:"readings,omitempty"`
	Events   []gpu.Event            `json:"events,omitempty"`
}

// classes of errors that keep their meaning on the way.
var classes = map[string]error{"not found": errdefs.ErrNotFound, "not implemented": errdefs.ErrNotImplemented}

// fail puts an error into the answer.
func (a *Answer) fail(err error) error {
	if err == nil {
		return nil
	}
	a.Error = err.Error()
	for class, of := range classes {
		if errors.Is(err, of) {
			a.Class = class
		}
	}
	return nil
}

// err takes the error out of the answer.
func (a *Answer) err() error {
	if a.Error == "" {
		return nil
	}
	class, ok := classes[a.Class]
	if !ok {
		class = errdefs.ErrUnavailable
	}
	return &remote{a.Error, class}
}

type remote struct {
	message string
	class   error
}

func (r *remote) Error() string { return r.message }
func (r *remote) Unwrap() error { return r.class }

// service has the methods that net/rpc calls.
type service struct {
	driver gpu.Driver
	err    error
}

// Inventory is gpu.Driver's.
func (s *service) Inventory(_ struct{}, a *Answer) (err error) {
	if s.err != nil {
		return a.fail(s.err)
	}
	a.Stock, err = s.driver.Inventory(context.Background())
	return a.fail(err)
}

// Read is gpu.Driver's.
func (s *service) Read(uuids []string, a *Answer) (err error) {
	if s.err != nil {
		return a.fail(s.err)
	}
	a.Readings, err = s.driver.Read(context.Background(), uuids)
	return a.fail(err)
}

// Events is gpu.Driver's.
func (s *service) Events(_ struct{}, a *Answer) (err error) {
	if s.err != nil {
		return a.fail(s.err)
	}
	a.Events, err = s.driver.Events(context.Background())
	return a.fail(err)
}
