package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

func cacheCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:     "cache",
		Short:   "Look after what this node keeps for its jobs",
		GroupID: "operator",
		Long: `Look after what this node keeps for its jobs.

A cache is a line of generations, of which each job gets a copy, a directory
that jobs and builds share, or what a project's jobs have at /cache. It is named
by its key, as "berth cache ls" prints it; a part that only one key has is
enough.`,
	}
	asJSON := c.PersistentFlags().Bool("json", false, "print JSON")
	c.AddCommand(
		cacheListCommand(socket, asJSON), cacheUsageCommand(socket, asJSON), cacheShowCommand(socket, asJSON),
		cacheRemoveCommand(socket), cachePruneCommand(socket, asJSON), cachePinCommand(socket), cacheUnpinCommand(socket),
		cacheRollbackCommand(socket),
	)
	return c
}

// findCache finds what has a key, or the only key that has a text in it.
func findCache(cmd *cobra.Command, client *api.Client, key string) ([]api.Cache, error) {
	list, err := client.Caches(cmd.Context())
	if err != nil {
		return nil, err
	}
	return matchCache(list, key)
}

func matchCache(list []api.Cache, key string) ([]api.Cache, error) {
	named := func(c api.Cache) bool { return c.Kind != api.CacheBuilds && c.Key == key }
	if !slices.ContainsFunc(list, named) {
		var keys []string
		for _, c := range list {
			if c.Kind != api.CacheBuilds && strings.Contains(c.Key, key) && !slices.Contains(keys, c.Key) {
				keys = append(keys, c.Key)
			}
		}
		switch len(keys) {
		case 0:
			return nil, fmt.Errorf("no cache has %q in its key: berth cache ls lists them", key)
		case 1:
			key = keys[0]
		default:
			return nil, fmt.Errorf("%d caches have %q in their keys, among them:\n  %s", len(keys), key, strings.Join(keys[:min(len(keys), 10)], "\n  "))
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(c api.Cache) bool { return !named(c) }), nil
}
