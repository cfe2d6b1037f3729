//go:build cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook/commands"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/gpu"
)

// hook does what NVIDIA's nvidia-cdi-hook does, with NVIDIA's own code: it
// makes links to the driver's libraries in a container and tells the
// container's loader of them. runc runs it as root, in the container's mount
// namespace; what it finds there belongs to the job, so its paths are
// resolved below the container's root, and ldconfig is the host's.
//
// Several, separated by --, are done in one go: a process for each costs more
// than what it does.
func hook(args []string) error {
	if args[0] != gpu.HooksCommand {
		return one(args)
	}
	state, err := io.ReadAll(io.LimitReader(os.Stdin, 16<<20))
	if err != nil {
		return fmt.Errorf("read the container's state: %w", err)
	}
	for len(args) > 0 {
		args = args[1:]
		end := slices.Index(args, gpu.HooksSeparator)
		if end < 0 {
			end = len(args)
		}
		// Each of them reads the state.
		if os.Stdin, err = memory(state); err != nil {
			return err
		}
		if err := one(args[:end]); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		args = args[end:]
	}
	return nil
}

func one(args []string) error {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.WarnLevel)
	c := commands.ConfigureCDIHookCommand(log, &cli.Command{Name: "berth-gpu"})
	return c.Run(context.Background(), append([]string{"berth-gpu"}, args...))
}

// memory is a file with a content, at its begin.
func memory(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("hold the container's state: %w", err)
	}
	f := os.NewFile(uintptr(fd), "state")
	_, err1 := f.Write(content)
	_, err2 := f.Seek(0, io.SeekStart)
	return f, errors.Join(err1, err2)
}
