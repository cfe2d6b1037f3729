package main

import (
	"os"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/stages"
)

// stageCommand is one of gitlab-runner's calls: its errors become the exit
// status that the runner expects.
func stageCommand(socket *string, c *cobra.Command, do func(*cobra.Command, *stages.Stage, []string) error) *cobra.Command {
	c.GroupID = "runner"
	profile := c.Flags().String("profile", "default", "profile of berthd.toml that holds for this runner's jobs")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		call := executor.NewCall(os.Environ())
		stage := &stages.Stage{Call: call, Profile: *profile, Berthd: api.NewClient(*socket), Version: version}
		if status := call.Exit(os.Stderr, do(cmd, stage, args)); status != 0 {
			return exitStatus(status)
		}
		return nil
	}
	return c
}

func configCommand(socket *string) *cobra.Command {
	return stageCommand(socket, &cobra.Command{
		Use:   "config",
		Short: "Tell gitlab-runner where jobs have their files",
		Args:  cobra.NoArgs,
	}, func(_ *cobra.Command, s *stages.Stage, _ []string) error { return s.Config(os.Stdout) })
}

func prepareCommand(socket *string) *cobra.Command {
	return stageCommand(socket, &cobra.Command{
		Use:   "prepare",
		Short: "Make a job's berth: admission, images, services, containers",
		Args:  cobra.NoArgs,
	}, func(c *cobra.Command, s *stages.Stage, _ []string) error { return s.Prepare(c.Context()) })
}

func runCommand(socket *string) *cobra.Command {
	return stageCommand(socket, &cobra.Command{
		Use:   "run SCRIPT STAGE",
		Short: "Run the script of one stage in the job's containers",
		Args:  cobra.ExactArgs(2),
	}, func(c *cobra.Command, s *stages.Stage, args []string) error {
		return s.Run(c.Context(), args[0], args[1])
	})
}

func cleanupCommand(socket *string) *cobra.Command {
	return stageCommand(socket, &cobra.Command{
		Use:   "cleanup",
		Short: "End a job and remove all that it made",
		Args:  cobra.NoArgs,
	}, func(c *cobra.Command, s *stages.Stage, _ []string) error { return s.Cleanup(c.Context()) })
}
