package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

func cacheCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:     "cache",
		Short:   "Look after what this node keeps for its jobs",
		GroupID: "operator",
		Long: `Look after what this node keeps for its jobs.

A cache is a line of generations, of which each job gets a copy, or a directory
that jobs and builds share. It is named by its key, as "berth cache ls" prints
it; a part that only one key has is enough.`,
	}
	asJSON := c.PersistentFlags().Bool("json", false, "print JSON")
	c.AddCommand(
		cacheListCommand(socket, asJSON), cacheUsageCommand(socket, asJSON), cacheShowCommand(socket, asJSON),
		cacheRemoveCommand(socket), cachePruneCommand(socket, asJSON), cachePinCommand(socket), cacheUnpinCommand(socket),
		cacheRollbackCommand(socket),
	)
	return c
}

func cacheListCommand(socket *string, asJSON *bool) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List caches, the largest first",
		Args:    cobra.NoArgs,
	}
	project := c.Flags().String("project", "", "only those of this project, as group/project")
	builds := c.Flags().Bool("builds", false, "the results of build steps, too")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := api.NewClient(*socket).Caches(cmd.Context())
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(c api.Cache) bool {
			return *project != "" && c.Project != *project || c.Kind == api.CacheBuilds && !*builds
		})
		slices.SortStableFunc(list, func(a, b api.Cache) int { return cmp.Compare(b.Size, a.Size) })
		return printCaches(os.Stdout, list, *asJSON)
	}
	return c
}

// printCaches prints a table, or a JSON object a line.
func printCaches(w io.Writer, list []api.Cache, asJSON bool) error {
	if asJSON {
		for _, c := range list {
			if err := json.NewEncoder(w).Encode(c); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PROJECT\tKEY\tKIND\tSIZE\tUSED\tGENERATION\tSTATE")
	for _, c := range list {
		newest := ""
		for _, g := range c.Generations {
			if !g.Withdrawn {
				newest = strconv.Itoa(g.Number)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(c.Project), printable(c.Key), c.Kind, size(c.Size), ago(c.Used), newest, stateOf(c))
	}
	return t.Flush()
}

func size(n int64) string { return units.BytesSize(float64(n)) }

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return strings.ToLower(units.HumanDuration(time.Since(t))) + " ago"
}

func stateOf(c api.Cache) string {
	var words []string
	if c.Held {
		words = append(words, "in use")
	}
	if c.Pinned {
		words = append(words, "pinned")
	}
	return strings.Join(words, ", ")
}

// usage is what a project takes.
type usage struct {
	Project   string    `json:"project"`
	Caches    int       `json:"caches"`
	Size      int64     `json:"size"`
	Removable int64     `json:"removable"`
	LastUsed  time.Time `json:"used"`
}

func cacheUsageCommand(socket *string, asJSON *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "du",
		Short: "Sum up what each project's caches take",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := api.NewClient(*socket).Caches(cmd.Context())
			if err != nil {
				return err
			}
			return printUsage(os.Stdout, list, *asJSON)
		},
	}
}

func printUsage(w io.Writer, list []api.Cache, asJSON bool) error {
	byProject := map[string]*usage{}
	var all []*usage
	total := &usage{Project: "total"}
	for _, c := range list {
		u := byProject[c.Project]
		if u == nil {
			u = &usage{Project: c.Project}
			byProject[c.Project] = u
			all = append(all, u)
		}
		for _, u := range []*usage{u, total} {
			u.Caches++
			u.Size += c.Size
			if !c.Held && !c.Pinned {
				u.Removable += c.Size
			}
			if c.Used.After(u.LastUsed) {
				u.LastUsed = c.Used
			}
		}
	}
	slices.SortFunc(all, func(a, b *usage) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.Project, b.Project))
	})
	if asJSON {
		for _, u := range all {
			if err := json.NewEncoder(w).Encode(u); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PROJECT\tCACHES\tSIZE\tREMOVABLE\tUSED")
	for _, u := range append(all, total) {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", printable(u.Project), u.Caches, size(u.Size), size(u.Removable), ago(u.LastUsed))
	}
	return t.Flush()
}

func cacheShowCommand(socket *string, asJSON *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "show KEY",
		Short: "Show a cache and its generations",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := findCache(cmd, api.NewClient(*socket), args[0])
			if err != nil {
				return err
			}
			if *asJSON {
				return printCaches(os.Stdout, list, true)
			}
			return showCaches(os.Stdout, list)
		},
	}
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

func showCaches(w io.Writer, list []api.Cache) error {
	for _, c := range list {
		fmt.Fprintf(w, "key      %s\nproject  %s\nkind     %s\nsize     %s\nused     %s\n", printable(c.Key), printable(c.Project), c.Kind, size(c.Size), ago(c.Used))
		if state := stateOf(c); state != "" {
			fmt.Fprintf(w, "state    %s\n", state)
		}
		for _, h := range c.Holders {
			fmt.Fprintf(w, "in use   by %s\n", h)
		}
		if len(c.Generations) == 0 {
			continue
		}
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "\nGENERATION\tPUBLISHED\tBY\tSIZE\tLAYERS\tSTATE\tNOTE")
		for _, g := range slices.Backward(c.Generations) {
			var words []string
			if g.Withdrawn {
				words = append(words, "withdrawn")
			}
			if g.Pinned {
				words = append(words, "pinned")
			}
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%s\t%s\n", g.Number, ago(g.Created), g.Job, size(g.Size), g.Layers, strings.Join(words, ", "), printable(g.Note))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

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
rollback to a withdrawn one takes it back.`,
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
	var keep, free string
	var r api.PruneRequest
	c.Flags().StringVar(&keep, "keep", "", "how much may be left, as 100GiB")
	c.Flags().StringVar(&free, "free", "", "how much is to be free on the disk, as 50GiB")
	c.Flags().DurationVar(&r.MaxAge, "older-than", 0, "remove what was not used for so long")
	c.Flags().BoolVar(&r.All, "all", false, "remove everything")
	c.Flags().StringVar(&r.Project, "project", "", "only what this project has, as group/project")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, s := range []struct {
			flag, text string
			to         *int64
		}{{"keep", keep, &r.MaxBytes}, {"free", free, &r.MinFree}} {
			if s.text == "" {
				continue
			}
			n, err := units.RAMInBytes(s.text)
			if err != nil || n <= 0 {
				return fmt.Errorf("--%s %q: expected a size, such as 100GiB", s.flag, s.text)
			}
			*s.to = n
		}
		if keep == "" && free == "" && r.MaxAge == 0 && !r.All {
			return errors.New("say what to remove: --keep SIZE, --free SIZE, --older-than TIME or --all")
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
