package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

func gpuCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:     "gpu",
		Short:   "Look at this node's GPUs, and keep some from jobs",
		GroupID: "operator",
	}
	c.AddCommand(gpuListCommand(socket), gpuShowCommand(socket), gpuQuarantineCommand(socket), gpuReleaseCommand(socket))
	return c
}

func gpuListCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "ls",
		Short: "List GPUs and MIG instances, and who has them",
		Args:  cobra.NoArgs,
	}
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := api.NewClient(*socket).GPUs(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(list)
		}
		return writeGPUs(os.Stdout, list)
	}
	return c
}

func writeGPUs(out io.Writer, list *api.GPUList) error {
	if list.Reason != "" {
		fmt.Fprintf(out, "No job can have GPUs of this node: %s\n", list.Reason)
	}
	for _, fault := range list.Faults {
		fmt.Fprintf(out, "WARNING: %s\n", fault)
	}
	if len(list.GPUs) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "GPU\tUUID\tMODEL\tMEMORY\tUSED\tBUSY\tSTATE\tJOB\tPROJECT\tREASON")
	for _, g := range list.GPUs {
		used, busy := "-", "-"
		if r := g.Reading; r != nil {
			used = r.MemoryUsed.String()
			if r.Utilisation != nil {
				busy = fmt.Sprintf("%d%%", *r.Utilisation)
			}
		}
		job, project := "-", "-"
		if g.Holder != nil {
			job, project = strconv.FormatInt(g.Holder.ID, 10), printable(g.Holder.Project)
		}
		reason := g.Reason
		if g.Quarantine != nil {
			reason = g.Quarantine.Reason
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%v\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Index, g.UUID, printable(modelOf(g)), g.Memory, used, busy, g.State, job, project, printable(reason))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if list.Waiting > 0 {
		fmt.Fprintf(out, "%d jobs wait for GPUs.\n", list.Waiting)
	}
	return nil
}

func modelOf(g api.GPU) string {
	if g.MIG != "" {
		return g.Model + " MIG " + g.MIG
	}
	return cmp.Or(g.Model, "-")
}

func gpuShowCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "show GPU",
		Short: "Show all that is known of a GPU, named by its UUID, the begin of it, or its number",
		Args:  cobra.ExactArgs(1),
	}
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := api.NewClient(*socket).GPUs(cmd.Context())
		if err != nil {
			return err
		}
		g, err := findGPU(list, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(g)
		}
		return writeGPU(os.Stdout, list, g)
	}
	return c
}

func writeGPU(out io.Writer, list *api.GPUList, g *api.GPU) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(name string, value any) {
		if text := fmt.Sprint(value); text != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, printable(text))
		}
	}
	line("UUID", g.UUID)
	line("GPU", g.Index)
	line("Model", modelOf(*g))
	line("Memory", g.Memory)
	line("Driver", list.Driver)
	line("CUDA", list.CUDA)
	line("PCI address", g.PCI)
	if g.NUMA >= 0 {
		line("NUMA node", g.NUMA)
	}
	line("CPUs nearby", g.CPUs)
	if p := g.Persistence; p != nil {
		line("Persistence", map[bool]string{true: "on", false: "off: it starts anew for each job"}[*p])
	}
	line("State", g.State)
	line("Reason", g.Reason)
	if q := g.Quarantine; q != nil {
		line("Quarantine", fmt.Sprintf("for %s (%s): %s", units.HumanDuration(time.Since(q.Since)), q.Cause, q.Reason))
	}
	if h := g.Holder; h != nil {
		line("Job", fmt.Sprintf("%d of %s, for %s", h.ID, h.Project, units.HumanDuration(time.Since(h.Since))))
	}
	if r := g.Reading; r != nil {
		line("Looked at", fmt.Sprintf("%s ago", units.HumanDuration(time.Since(r.At))))
		line("Memory used", r.MemoryUsed)
		if r.Utilisation != nil {
			line("Busy", fmt.Sprintf("%d%%", *r.Utilisation))
		}
		if len(r.PIDs) > 0 {
			line("Processes", strings.Trim(fmt.Sprint(r.PIDs), "[]"))
		}
		line("Uncorrected errors", r.Uncorrected)
		line("Slowed down", strings.Join(r.Throttled, ", "))
	}
	line("Not told", strings.Join(g.Unread, "; "))
	for _, l := range g.Links {
		line("Link", fmt.Sprintf("%s: %d × NVLink, PCIe by %s", l.To, l.NVLinks, l.Path))
	}
	return w.Flush()
}

// findGPU finds a GPU by UUID, by a begin of it that no other has, or by
// number, if it is whole.
func findGPU(list *api.GPUList, name string) (*api.GPU, error) {
	var found []*api.GPU
	for i := range list.GPUs {
		g := &list.GPUs[i]
		if g.UUID == name {
			return g, nil
		}
		if strings.HasPrefix(g.UUID, name) || strconv.Itoa(g.Index) == name && g.State != api.GPUGone {
			found = append(found, g)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no GPU %q on this node: berth gpu ls lists them", name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d GPUs are called %q: name one by its UUID", len(found), name)
}

func gpuQuarantineCommand(socket *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "quarantine GPU",
		Short: "Keep a GPU from further jobs until it is released; one that has it keeps it",
		Args:  cobra.ExactArgs(1),
	}
	reason := c.Flags().String("reason", "", "why, for those who see it in `berth gpu ls`")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return onGPU(cmd, *socket, args[0], func(client *api.Client, g *api.GPU) error {
			return client.QuarantineGPU(cmd.Context(), g.UUID, *reason)
		})
	}
	return c
}

func gpuReleaseCommand(socket *string) *cobra.Command {
	return &cobra.Command{
		Use:   "release GPU",
		Short: "End a GPU's quarantine; one that is still not well is soon back in it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return onGPU(cmd, *socket, args[0], func(client *api.Client, g *api.GPU) error {
				return client.ReleaseGPU(cmd.Context(), g.UUID)
			})
		},
	}
}

func onGPU(cmd *cobra.Command, socket, name string, do func(*api.Client, *api.GPU) error) error {
	client := api.NewClient(socket)
	list, err := client.GPUs(cmd.Context())
	if err != nil {
		return err
	}
	g, err := findGPU(list, name)
	if err != nil {
		return err
	}
	return do(client, g)
}
