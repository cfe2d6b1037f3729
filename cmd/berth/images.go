package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

func imagesCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:     "images",
		GroupID: "operator",
		Short:   "List the images that jobs have pulled or made, and remove them",
		Long: `List the images that jobs have pulled or made, and remove them.

Images that were put on the node by ctr or docker are the operator's own: they
are not listed, and never removed.`,
	}
	asJSON := c.PersistentFlags().Bool("json", false, "print JSON")
	c.AddCommand(imageListCommand(socket, asJSON), imageRemoveCommand(socket), imagePruneCommand(socket, asJSON))
	return c
}

func imageListCommand(socket *string, asJSON *bool) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images, the largest first",
		Long: `List images, the largest first. SIZE is of all that an image consists of,
compressed and unpacked; UNIQUE is what becomes free when it is removed, since
nothing else has a part in it.`,
		Args: cobra.NoArgs,
	}
	project := c.Flags().String("project", "", "only those that this project's jobs have made, as group/project")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := api.NewClient(*socket).Images(cmd.Context())
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(i api.Image) bool { return *project != "" && i.Project != *project })
		slices.SortStableFunc(list, func(a, b api.Image) int {
			return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.Name, b.Name))
		})
		return printImages(os.Stdout, list, *asJSON)
	}
	return c
}

// printImages prints a table, or a JSON object a line.
func printImages(w io.Writer, list []api.Image, asJSON bool) error {
	if asJSON {
		return printJSON(w, list)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tPROJECT\tTIER\tSIZE\tUNIQUE\tUSED\tIN USE BY")
	for _, i := range list {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(i.Image), printable(cmp.Or(i.Project, "-")), tierOf(i),
			size(i.Size), size(i.Unique), ago(i.Used), printable(strings.Join(i.Users, ", ")))
	}
	return t.Flush()
}

// tierOf is the trust that the jobs have which made the name.
func tierOf(i api.Image) string {
	switch {
	case i.Project == "":
		return "-"
	case i.Protected:
		return "protected"
	}
	return "unprotected"
}

func imageRemoveCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "rm IMAGE",
		Short: "Remove an image that is not in use",
		Long: `Remove an image that is not in use, by its name as "berth images ls" prints it,
or as containerd has it.`,
		Args: cobra.ExactArgs(1),
	}
	project := c.Flags().String("project", "", "whose image it is, where several have one of that name")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		client := api.NewClient(*socket)
		list, err := client.Images(cmd.Context())
		if err != nil {
			return err
		}
		name, err := matchImage(list, args[0], *project)
		if err != nil {
			return err
		}
		return client.RemoveImage(cmd.Context(), name)
	}
	return c
}

// matchImage finds the one image that goes by a name.
func matchImage(list []api.Image, name, project string) (string, error) {
	var found []string
	for _, i := range list {
		if i.Name == name {
			return name, nil
		}
		if i.Image == name && (project == "" || i.Project == project) {
			found = append(found, i.Name)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no image %q: berth images ls lists them", name)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d images are called %q; name one of these:\n  %s", len(found), name, strings.Join(found, "\n  "))
}

func imagePruneCommand(socket *string, asJSON *bool) *cobra.Command {
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that are not in use, the longest unused first",
		Long: `Remove images that are not in use, the longest unused first. berthd does so by
itself as [images] of its configuration says. What a job or a container has
stays.

  berth images prune --keep 100GiB        until no more than that is left
  berth images prune --free 50GiB         until that much is free on the disk
  berth images prune --older-than 240h    what was not used for so long
  berth images prune --all                everything

BuildKit's cache may have layers of an image, too: those go with "berth cache
prune".`,
		Args: cobra.NoArgs,
	}
	var r api.ImagePrune
	read := roomFlags(c, &r.Room)
	c.Flags().BoolVar(&r.DryRun, "dry-run", false, "only tell what would be removed")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := read(); err != nil {
			return err
		}
		removed, err := api.NewClient(*socket).PruneImages(cmd.Context(), r)
		if err != nil {
			return err
		}
		if *asJSON {
			return printImages(os.Stdout, removed, true)
		}
		what := "removed"
		if r.DryRun {
			what = "would remove"
		}
		var total int64
		for _, i := range removed {
			total += i.Unique
			of := ""
			if i.Project != "" {
				of = fmt.Sprintf(" of %s (%s)", printable(i.Project), tierOf(i))
			}
			fmt.Printf("%s %s%s, used %s, frees %s\n", what, printable(i.Image), of, ago(i.Used), size(i.Unique))
		}
		_, err = fmt.Printf("%s %d, %s\n", what, len(removed), size(total))
		return err
	}
	return c
}
