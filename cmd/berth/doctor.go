package main

import (
	"os"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/doctor"
)

func doctorCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with this host, and how to mend it",
		Long: `Examine this host: kernel, cgroups, network, file systems, clock, GPUs, the programs of
the runtime, berthd, and gitlab-runner's configuration. What is wrong comes with
a sentence on how to mend it. The exit status is 1 if something keeps jobs from
running. Run it as root.`,
		Args:    cobra.NoArgs,
		GroupID: "operator",
	}
	asJSON := c.Flags().Bool("json", false, "print JSON")
	options := doctor.Options{Version: version}
	c.Flags().StringVar(&options.Config, "config", "", "berthd's configuration (default: where berthd looks for it)")
	c.Flags().StringVar(&options.RunnerConfig, "runner-config", "", "gitlab-runner's configuration (default: where gitlab-runner looks for it)")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("socket") {
			options.Socket = *socket
		}
		checks := doctor.Run(cmd.Context(), options)
		print := doctor.Table
		if *asJSON {
			print = doctor.JSON
		}
		if err := print(os.Stdout, checks); err != nil {
			return err
		}
		if doctor.Failed(checks) {
			return exitStatus(1)
		}
		return nil
	}
	return c
}
