package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// pipelineCommand runs a directory's .gitlab-ci.yml with nothing around it: a
// stand-in GitLab and the driver in one process.
func pipelineCommand() *cobra.Command {
	var p pipeline
	cmd := &cobra.Command{
		Use:   "pipeline DIRECTORY",
		Short: "Run the pipeline of a directory's .gitlab-ci.yml and show what took how long",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.dir, p.out = args[0], cmd.OutOrStdout()
			return p.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&p.config, "config", "c", "config.toml", "gitlab-runner's configuration `file`; url and token are filled in")
	flags.StringVar(&p.listen, "listen", "127.0.0.1:0", "`address` of the stand-in GitLab")
	flags.StringVar(&p.url, "url", "", "`URL` of the stand-in GitLab for jobs, where it is not the address")
	flags.StringVar(&p.project, "project", "group/demo", "the project's `path`")
	flags.StringSliceVar(&p.tags, "tags", nil, "the runner's tags")
	return cmd
}

type pipeline struct {
	config, listen, url, project, dir string
	tags                              []string
	out                               io.Writer

	mu      sync.Mutex
	results map[int64]runner.Result
}

func (p *pipeline) run(ctx context.Context) (err error) {
	config, err := runner.LoadConfig(p.config)
	if err != nil {
		return err
	}
	if len(config.Runners) != 1 {
		return fmt.Errorf("expected one [[runners]], found %d", len(config.Runners))
	}
	text, err := os.ReadFile(filepath.Join(p.dir, ".gitlab-ci.yml"))
	if err != nil {
		return fmt.Errorf("read pipeline: %w", err)
	}
	parsed, err := gitlab.ParsePipeline(text)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", p.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var opts []gitlab.Option
	if p.url != "" {
		opts = append(opts, gitlab.WithURL(p.url))
	}
	srv, err := gitlab.New(l, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	project, err := srv.AddProject(p.project, os.DirFS(p.dir))
	if err != nil {
		return err
	}
	config.Runners[0].URL, config.Runners[0].Token = srv.URL(), srv.AddRunner(p.tags...)
	config.CheckInterval = 1

	jobs, err := srv.EnqueuePipeline(project, gitlab.DefaultBranch, parsed)
	if err != nil {
		return err
	}
	p.results = map[int64]runner.Result{}
	driver := runner.Driver{Config: config, Timing: runner.DefaultTiming, Done: p.done}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- driver.Serve(serving, 0) }()
	failed := p.follow(ctx, jobs)
	stop()
	if err := <-served; err != nil {
		return err
	}
	return errors.Join(failed, p.table(jobs))
}

func (p *pipeline) done(result runner.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.results[result.JobID] = result
}

// follow shows one log after the other, in the order of the stages.
func (p *pipeline) follow(ctx context.Context, jobs []*gitlab.Job) error {
	var failed error
	for _, j := range jobs {
		fmt.Fprintf(p.out, "\n\x1b[1m%s\x1b[0m (job %d)\n", j.Name(), j.ID)
		state, err := j.Follow(ctx, p.out)
		if err != nil {
			for _, j := range jobs {
				j.ForceCancel()
			}
			return fmt.Errorf("follow job %s: %w", j.Name(), err)
		}
		if state == gitlab.Failed && !j.AllowedToFail() {
			failed = fmt.Errorf("job %s failed: %s", j.Name(), j.FailureReason())
		}
	}
	return failed
}

// table shows the time of each call of each job.
func (p *pipeline) table(jobs []*gitlab.Job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\njob\tcall\tms\t")
	for _, j := range jobs {
		result := p.results[j.ID]
		for _, call := range result.Calls {
			fmt.Fprintf(w, "%s\t%s\t%s\t\n", j.Name(), call.Name, milliseconds(call.Took))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t\n", j.Name(), j.State(), milliseconds(result.Took))
	}
	return w.Flush()
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond))
}
