package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

// exitStatus is an error that has been reported already.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func execute() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
		return 1
	}
	return 0
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run GitLab CI jobs in containerd, on a node that remembers",
		Long: `Berth is a GitLab Runner custom executor. gitlab-runner calls it by its
config.toml:

  [[runners]]
    executor = "custom"
    [runners.custom]
      config_exec  = "/usr/local/bin/berth"
      config_args  = ["config"]
      prepare_exec = "/usr/local/bin/berth"
      prepare_args = ["prepare", "--profile", "default"]
      run_exec     = "/usr/local/bin/berth"
      run_args     = ["run"]
      cleanup_exec = "/usr/local/bin/berth"
      cleanup_args = ["cleanup"]

Profiles are defined in berthd's /etc/berth/berthd.toml. The other commands
are for whoever looks after the node.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	socket := root.PersistentFlags().String("socket", api.DefaultSocket, "berthd's socket")
	root.AddGroup(&cobra.Group{ID: "runner", Title: "Called by gitlab-runner:"}, &cobra.Group{ID: "operator", Title: "For operators:"})
	root.AddCommand(
		configCommand(socket), prepareCommand(socket), runCommand(socket), cleanupCommand(socket),
		jobsCommand(socket), cacheCommand(socket), imagesCommand(socket), attachCommand(socket), doctorCommand(socket), gpuCommand(socket),
	)
	return root
}
