package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/gpu/nvml"
	"gitlab.com/berth-ci/berth/gpu/process"
)

// stdio is the connection with berthd.
type stdio struct {
	io.Reader
	io.WriteCloser
}

// run serves berthd, or is one of NVIDIA's hooks, which are named by the first
// argument.
func run(args []string) error {
	if len(args) > 0 && args[0] != "serve" && args[0][0] != '-' {
		return hook(args)
	}
	flags := flag.NewFlagSet("berth-gpu", flag.ContinueOnError)
	root := flags.String("root", "/", "where the driver's files are")
	about := flags.Bool("version", false, "print the version")
	if len(args) > 0 && args[0] == "serve" {
		args = args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *about {
		fmt.Println("berth-gpu version", version)
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return process.Serve(stdio{os.Stdin, os.Stdout}, func() (gpu.Driver, error) {
		return nvml.Open(nvml.Options{Root: *root, Hook: self})
	})
}
