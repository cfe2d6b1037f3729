package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// showTimes prints a table with a row for each call that the runner made and a
// column for each job.
func showTimes(w io.Writer, jobs []*gitlab.Job, results string) error {
	took, err := readResults(results)
	if err != nil {
		return err
	}
	jobs = slices.DeleteFunc(slices.Clone(jobs), func(j *gitlab.Job) bool { return took[j.ID] == nil })
	var calls []string
	for _, j := range jobs {
		calls = merge(calls, took[j.ID].Calls)
	}
	fmt.Fprint(w, "\n\x1b[1mWhat took how long, in milliseconds\x1b[0m\n"+
		"The runner calls berth for config and prepare, then once for each stage, and for cleanup.\n\n")
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	row := func(title string, value func(*gitlab.Job) string) {
		fmt.Fprint(table, title, "\t")
		for _, j := range jobs {
			fmt.Fprint(table, value(j), "\t")
		}
		fmt.Fprintln(table)
	}
	row("", (*gitlab.Job).Name)
	for _, name := range calls {
		row(name, func(j *gitlab.Job) string {
			var sum time.Duration
			for _, call := range took[j.ID].Calls {
				if call.Name == name {
					sum += call.Took
				}
			}
			if sum == 0 {
				return "·"
			}
			return milliseconds(sum)
		})
	}
	row("whole job", func(j *gitlab.Job) string { return milliseconds(took[j.ID].Took) })
	return table.Flush()
}

// merge adds calls that are not in the list yet after the one before them.
func merge(list []string, calls []runner.Call) []string {
	at := 0
	for _, call := range calls {
		if i := slices.Index(list, call.Name); i >= 0 {
			at = i + 1
			continue
		}
		list = slices.Insert(list, at, call.Name)
		at++
	}
	return list
}

// readResults reads what the runner has written, a line for each job.
func readResults(file string) (map[int64]*runner.Result, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the runner's results: %w", err)
	}
	results := map[int64]*runner.Result{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		r := new(runner.Result)
		if err := json.Unmarshal(lines.Bytes(), r); err != nil {
			return nil, fmt.Errorf("read the runner's results: %w", err)
		}
		for i := range r.Calls {
			r.Calls[i].Name = strings.TrimPrefix(r.Calls[i].Name, "run ")
		}
		results[r.JobID] = r
	}
	return results, nil
}

func milliseconds(d time.Duration) string {
	return fmt.Sprint(d.Round(time.Millisecond).Milliseconds())
}
