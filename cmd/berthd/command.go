package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node"
	"gitlab.com/berth-ci/berth/node/config"
)

func rootCommand() *cobra.Command {
	var (
		file  string
		check bool
	)
	root := &cobra.Command{
		Use:   "berthd",
		Short: "Give CI jobs their berths on this node",
		Long: `berthd is the daemon of a node that runs CI jobs with Berth. It admits jobs,
makes their networks, cgroups and directories, keeps a containerd running, and
cleans up after them. Jobs go on while it is stopped, upgraded or killed.

An empty configuration is fine; every key is explained in berthd.toml.example.`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			if errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config") {
				c, err = config.Default(), nil
			}
			if err != nil {
				return err
			}
			if check {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is fine: %d profiles, root %s, socket %s\n", file, len(c.Profiles), c.Root, c.Socket)
				return nil
			}
			log, err := logger(c.LogLevel)
			if err != nil {
				return err
			}
			return node.Run(cmd.Context(), c, version, log)
		},
	}
	root.AddCommand(
		besideCommand("resolver", "Answer DNS in the jobs' networks, beside berthd", node.ServeResolver),
		besideCommand("relay", "Keep jobs' sockets and streams, beside berthd", node.ServeRelay),
	)
	root.Flags().StringVar(&file, "config", config.DefaultPath, "configuration file; the default one need not exist")
	root.Flags().BoolVar(&check, "check", false, "check the configuration and start nothing")
	return root
}

// besideCommand is what berthd starts itself.
func besideCommand(name, short string, serve func(ctx context.Context, socket, version string, log *logrus.Entry) error) *cobra.Command {
	var socket, level string
	c := &cobra.Command{
		Use:    name,
		Short:  short,
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(level)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), socket, version, log)
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "control socket")
	c.Flags().StringVar(&level, "log-level", "info", "how much to log")
	_ = c.MarkFlagRequired("socket")
	return c
}

func logger(level string) (*logrus.Entry, error) {
	l := logrus.New()
	parsed, err := logrus.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	l.SetLevel(parsed)
	return logrus.NewEntry(l), nil
}
