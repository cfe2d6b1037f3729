package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

// keyed is a command about one cache, or a generation of it.
func keyed(socket *string, c *cobra.Command, do func(cmd *cobra.Command, client *api.Client, change api.CacheChange) error) *cobra.Command {
	c.Args = cobra.RangeArgs(1, 2)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		client := api.NewClient(*socket)
		list, err := findCache(cmd, client, args[0])
		if err != nil {
			return err
		}
		change := api.CacheChange{Key: list[0].Key}
		if len(args) == 2 {
			if change.Number, err = strconv.Atoi(args[1]); err != nil || change.Number < 1 {
				return fmt.Errorf("generation %q: expected a number that berth cache show prints", args[1])
			}
		}
		return do(cmd, client, change)
	}
	return c
}

func cacheRemoveCommand(socket *string) *cobra.Command {
	return keyed(socket, &cobra.Command{
		Use:   "rm KEY [GENERATION]",
		Short: "Forget a cache, or one of its generations",
		Long: `Forget a cache, or one of its generations. Jobs that have a copy keep it, and
publish nothing of it. A directory that jobs share cannot be in use.`,
	}, func(cmd *cobra.Command, client *api.Client, change api.CacheChange) error {
		return client.RemoveCache(cmd.Context(), change)
	})
}

func cachePinCommand(socket *string) *cobra.Command {
	return keyed(socket, &cobra.Command{
		Use:   "pin KEY [GENERATION]",
		Short: "Keep a cache, its newest generation by default, from being removed to make room",
	}, func(cmd *cobra.Command, client *api.Client, change api.CacheChange) error {
		change.Pinned = true
		return client.PinCache(cmd.Context(), change)
	})
}

func cacheUnpinCommand(socket *string) *cobra.Command {
	return keyed(socket, &cobra.Command{
		Use:   "unpin KEY [GENERATION]",
		Short: "Undo pin",
	}, func(cmd *cobra.Command, client *api.Client, change api.CacheChange) error {
		return client.PinCache(cmd.Context(), change)
	})
}

func cacheRollbackCommand(socket *string) *cobra.Command {
	return keyed(socket, &cobra.Command{
		Use:   "rollback KEY [GENERATION]",
		Short: "Have jobs get an earlier generation again, the one before the newest by default",
		Long: `Have jobs get an earlier generation again, the one before the newest by default.
Those after it are withdrawn: jobs that have copies of them publish nothing. A
rollback to a withdrawn one takes it back. Directories have no generations to go
back to.`,
	}, func(cmd *cobra.Command, client *api.Client, change api.CacheChange) error {
		g, err := client.RollBackCache(cmd.Context(), change)
		if err != nil {
			return err
		}
		_, err = fmt.Printf("jobs get generation %d of %s, %s old\n", g.Number, printable(change.Key), strings.ToLower(units.HumanDuration(time.Since(g.Created))))
		return err
	})
}

func cachePruneCommand(socket *string, asJSON *bool) *cobra.Command {
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove caches and build results that nobody uses, the oldest first",
		Long: `Remove caches and build results that nobody uses, the oldest first, and those
of projects that have more than their share before others. berthd does so by
itself as [cache] of its configuration says. What jobs have, or what is pinned,
stays.

  berth cache prune --keep 100GiB        until no more than that is left
  berth cache prune --free 50GiB         until that much is free on the disk
  berth cache prune --older-than 240h    what was not used for so long
  berth cache prune --all                everything`,
		Args: cobra.NoArgs,
	}
	var r api.CachePrune
	read := roomFlags(c, &r.Room)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := read(); err != nil {
			return err
		}
		removed, err := api.NewClient(*socket).PruneCaches(cmd.Context(), r)
		if err != nil {
			return err
		}
		if *asJSON {
			return printCaches(os.Stdout, removed, true)
		}
		var total int64
		for _, c := range removed {
			total += c.Size
			fmt.Printf("removed %s %s, %s\n", c.Kind, printable(c.Key), size(c.Size))
		}
		_, err = fmt.Printf("%d removed, %s\n", len(removed), size(total))
		return err
	}
	return c
}
