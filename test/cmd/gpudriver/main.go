//go:build cgo

// Command gpudriver stands in for berth-gpu in tests: GPUs that are not there,
// with the rest as it is. Machine is read from the file gpus.json in the
// driver's root, what the GPUs tell of themselves from state.json, each time,
// and faults that they report from xids.json, once.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/nvml"
	"gitlab.com/berth-ci/berth/gpu/nvml/nvmltest"
	"gitlab.com/berth-ci/berth/gpu/process"
)

// machine is what there is.
type machine struct {
	GPUs int         `json:"gpus"`
	MIG  map[int]int `json:"mig"`
	// Hook is the real berth-gpu.
	Hook string `json:"hook"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gpudriver:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := flag.NewFlagSet("gpudriver", flag.ContinueOnError)
	root := flags.String("root", "/", "where the driver's files are")
	if len(os.Args) < 2 {
		return flags.Parse([]string{"-help"})
	}
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	var m machine
	if err := read(filepath.Join(*root, "gpus.json"), &m); err != nil {
		return err
	}
	lib := nvmltest.New(m.GPUs, m.MIG)
	return process.Serve(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}, func() (gpu.Driver, error) {
		d, err := nvml.New(lib, nvml.Options{Root: *root, Hook: m.Hook})
		return driver{d, lib, *root}, err
	})
}

// driver learns the GPUs' state before it tells it.
type driver struct {
	gpu.Driver
	lib  *nvmltest.Library
	root string
}

func (d driver) Read(ctx context.Context, uuids []string) (map[string]gpu.Reading, error) {
	states := map[string]nvmltest.State{}
	if err := read(filepath.Join(d.root, "state.json"), &states); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, uuid := range uuids {
		d.lib.Set(uuid, states[uuid])
	}
	return d.Driver.Read(ctx, uuids)
}

// fault is what a GPU reports.
type fault struct {
	GPU int    `json:"gpu"`
	XID uint64 `json:"xid"`
}

func (d driver) Events(ctx context.Context) ([]gpu.Event, error) {
	var faults []fault
	file := filepath.Join(d.root, "xids.json")
	if err := read(file, &faults); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, f := range faults {
		d.lib.XID(f.GPU, f.XID, -1)
	}
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return d.Driver.Events(ctx)
}

func read(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}
