package main

import (
	"cmp"
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
		return printJSON(w, list)
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
		return printJSON(w, all)
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

// kindText says what a kind is.
func kindText(kind string) string {
	switch kind {
	case api.CacheGenerations:
		return kind + ": each job gets a copy of the newest"
	case api.CacheMounts:
		return kind + ": a directory that jobs and builds share"
	case api.CacheDirectories:
		return kind + ": what the project's jobs have at /cache"
	}
	return kind
}

func showCaches(w io.Writer, list []api.Cache) error {
	for _, c := range list {
		fmt.Fprintf(w, "key      %s\nproject  %s\nkind     %s\nsize     %s\nused     %s\n", printable(c.Key), printable(c.Project), kindText(c.Kind), size(c.Size), ago(c.Used))
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
