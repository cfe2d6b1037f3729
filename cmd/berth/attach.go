package main

import (
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/attach"
	"gitlab.com/berth-ci/berth/node/api"
)

func attachCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "attach JOB [-- COMMAND...]",
		Short: "Open a shell in a job's container",
		Long: `Open a shell, or run a command, in the container of a running job. JOB is the
job's id, or its key where two GitLab servers have a job of that id.`,
		Example: `  berth attach 4711
  berth attach 4711 --helper -- git -C /builds/group/project log -3`,
		Args:    cobra.MinimumNArgs(1),
		GroupID: "operator",
	}
	options := attach.Options{}
	c.Flags().BoolVar(&options.Helper, "helper", false, "the helper container, where git and the runner's own stages run")
	c.Flags().StringVarP(&options.User, "user", "u", "", "user or user:group to run as (default: the container's)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		options.Job, options.Command = args[0], args[1:]
		status, err := attach.Run(cmd.Context(), api.NewClient(*socket), options)
		if err == nil && status != 0 {
			return exitStatus(status)
		}
		return err
	}
	return c
}
