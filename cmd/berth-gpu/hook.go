//go:build cgo

package main

import (
	"context"
	"os"

	"github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook/commands"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
)

// hook does what NVIDIA's nvidia-cdi-hook does, with NVIDIA's own code: it
// makes links to the driver's libraries in a container and tells the
// container's loader of them. runc runs it as root, in the container's mount
// namespace; what it finds there belongs to the job, so its paths are
// resolved below the container's root, and ldconfig is the host's.
func hook(args []string) error {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.WarnLevel)
	c := commands.ConfigureCDIHookCommand(log, &cli.Command{Name: "berth-gpu"})
	return c.Run(context.Background(), append([]string{"berth-gpu"}, args...))
}
