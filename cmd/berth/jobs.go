package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

func jobsCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:     "jobs",
		Short:   "List the jobs on this node",
		Args:    cobra.NoArgs,
		GroupID: "operator",
	}
	asJSON := c.Flags().Bool("json", false, "print JSON, a job a line")
	watch := c.Flags().BoolP("watch", "w", false, "go on with each change, a line each")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		client := api.NewClient(*socket)
		print := jobLine
		if *asJSON {
			print = jobJSON
		}
		if *watch {
			return client.Watch(cmd.Context(), func(e api.Event) error { return print(os.Stdout, e.Job, e.Reason) })
		}
		jobs, err := client.Jobs(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			for _, j := range jobs {
				if err := jobJSON(os.Stdout, j, ""); err != nil {
					return err
				}
			}
			return nil
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "JOB\tPROJECT\tNAME\tREF\tPROFILE\tSTATE\tFOR\tIMAGE\tLAST")
		for _, j := range jobs {
			if err := jobLine(w, j, ""); err != nil {
				return err
			}
		}
		return w.Flush()
	}
	return c
}

func jobJSON(w io.Writer, j api.Job, _ string) error { return json.NewEncoder(w).Encode(j) }

// printable takes from what users have chosen whatever a terminal would act on.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

func jobLine(w io.Writer, j api.Job, reason string) error {
	last := reason
	if last == "" && j.Last != nil {
		last = j.Last.Stage + ": " + j.Last.Status
	}
	_, err := fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", j.Identity.ID, printable(j.Identity.Project), printable(j.Identity.Name),
		printable(j.Identity.Ref), j.Profile, j.State, units.HumanDuration(time.Since(j.Since)), j.Image, last)
	return err
}
