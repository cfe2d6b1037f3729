package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// serveCommand is gitlab-runner's run.
func serveCommand() *cobra.Command {
	var configFile, gitlabURL, token, results string
	var jobs int
	var once bool
	timing := runner.DefaultTiming
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Ask GitLab for jobs and run them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := runner.LoadConfig(configFile)
			if err != nil {
				return err
			}
			for i := range config.Runners {
				if gitlabURL != "" {
					config.Runners[i].URL = gitlabURL
				}
				if token != "" {
					config.Runners[i].Token = token
				}
			}
			if once {
				jobs = 1
			}
			d := runner.Driver{Config: config, Timing: timing}
			if results != "" {
				record, err := newRecord(results)
				if err != nil {
					return err
				}
				defer record.file.Close()
				d.Done = record.add
			}
			return d.Serve(cmd.Context(), jobs)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&configFile, "config", "c", "config.toml", "gitlab-runner's configuration `file`")
	flags.StringVar(&gitlabURL, "gitlab", "", "server `URL` in place of the configured one")
	flags.StringVar(&token, "token", "", "runner `token` in place of the configured one")
	flags.IntVar(&jobs, "jobs", 0, "end after this `number` of jobs")
	flags.BoolVar(&once, "once", false, "end after one job")
	flags.StringVar(&results, "results", "", "append each job's result, as JSON, to this `file`")
	flags.DurationVar(&timing.PrepareRetry, "prepare-retry", timing.PrepareRetry, "`time` between tries of prepare")
	flags.DurationVar(&timing.StageRetry, "stage-retry", timing.StageRetry, "`time` between tries of a stage")
	return cmd
}

// record is a file with a line of JSON per job.
type record struct {
	mu   sync.Mutex
	file *os.File
}

func newRecord(name string) (*record, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	return &record{file: f}, nil
}

func (r *record) add(result runner.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := json.NewEncoder(r.file).Encode(result); err != nil {
		say("write result: %v", err)
	}
}

// execCommand runs one job without a server.
func execCommand() *cobra.Command {
	var configFile, jobFile, results string
	timing := runner.DefaultTiming
	cmd := &cobra.Command{
		Use:   "exec",
		Short: "Run the job of a file and print its log",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := runner.LoadConfig(configFile)
			if err != nil {
				return err
			}
			if len(config.Runners) != 1 {
				return fmt.Errorf("expected one [[runners]], found %d", len(config.Runners))
			}
			data, err := os.ReadFile(jobFile)
			if err != nil {
				return fmt.Errorf("read job: %w", err)
			}
			payload := new(gitlab.Payload)
			if err := json.Unmarshal(data, payload); err != nil {
				return fmt.Errorf("read job: %w", err)
			}
			result := runner.Run(cmd.Context(), config.Runners[0], payload, os.Stdout, timing)
			if results != "" {
				r, err := newRecord(results)
				if err != nil {
					return err
				}
				defer r.file.Close()
				r.add(result)
			}
			return outcome(cmd.Context(), result)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&configFile, "config", "c", "config.toml", "gitlab-runner's configuration `file`")
	flags.StringVar(&jobFile, "job", "job.json", "`file` with the job as GitLab sends it")
	flags.StringVar(&results, "results", "", "append the job's result, as JSON, to this `file`")
	flags.DurationVar(&timing.PrepareRetry, "prepare-retry", timing.PrepareRetry, "`time` between tries of prepare")
	return cmd
}

func outcome(ctx context.Context, result runner.Result) error {
	if result.State == "success" {
		return ctx.Err()
	}
	return fmt.Errorf("job %d failed (%s): %s", result.JobID, result.FailureReason, result.Error)
}
