package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/pipeline"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// demo is what runs while the demo does.
type demo struct {
	node    *testnode.Node
	gitlab  *gitlab.Server
	project *gitlab.Project
}

// push makes a GitLab and the project there.
func (d *demo) push(registry *images.Registry) (err error) {
	if d.gitlab, err = d.node.GitLab(); err != nil {
		return err
	}
	if d.project, err = d.gitlab.AddProject("harbour/logbook", pipeline.Files); err != nil {
		return err
	}
	d.project.SetVariables(
		gitlab.Variable{Key: "IMAGES", Value: registry.Address + "/test", Public: true},
		gitlab.Variable{Key: "DEPLOY_KEY", Value: "a key, in a file\n", File: true},
	)
	return nil
}

// run runs the pipeline and shows how it went.
func (d *demo) run(ctx context.Context, dir string) error {
	text, err := pipeline.Files.ReadFile(pipeline.File)
	if err != nil {
		return err
	}
	parsed, err := gitlab.ParsePipeline(text)
	if err != nil {
		return err
	}
	jobs, err := d.gitlab.EnqueuePipeline(d.project, gitlab.DefaultBranch, parsed)
	if err != nil {
		return err
	}
	results := filepath.Join(dir, "results")
	r := d.node.Runner("default", d.gitlab.URL(), d.gitlab.AddRunner())
	process, err := runner.Start(d.node.Program(), dir, runner.Config{Concurrent: 2, CheckInterval: 1, Runners: []runner.Runner{r}},
		nil, "--results", results)
	if err != nil {
		return err
	}
	err = d.follow(ctx, jobs)

	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if stopErr := process.Stop(stopping); stopErr != nil {
		log, _ := os.ReadFile(process.LogFile) // adds to the error, no more
		err = errors.Join(err, fmt.Errorf("stop runner: %w\n%s", stopErr, log))
	}
	if ctx.Err() != nil {
		return err
	}
	return errors.Join(err, showTimes(os.Stdout, jobs, results))
}

// follow shows the log of each job, in the order of the pipeline.
func (d *demo) follow(ctx context.Context, jobs []*gitlab.Job) error {
	var errs []error
	for i, j := range jobs {
		title := fmt.Sprintf("── Job %d of %d: %s ", i+1, len(jobs), j.Name())
		fmt.Printf("\n\x1b[1m%s%s\x1b[0m\n\n", title, strings.Repeat("─", max(0, 78-len([]rune(title)))))
		state, err := j.Follow(ctx, os.Stdout)
		switch {
		case err != nil:
			for _, j := range jobs {
				j.ForceCancel()
			}
			return fmt.Errorf("follow job %s: %w", j.Name(), err)
		case state == gitlab.Skipped:
			fmt.Println("Skipped, since a job that it needs failed.")
		case state != gitlab.Success && !j.AllowedToFail():
			errs = append(errs, fmt.Errorf("job %s: %s, %s", j.Name(), state, j.FailureReason()))
		}
	}
	return errors.Join(errs...)
}
