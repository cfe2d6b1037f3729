package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner/job"
)

// executor runs the stages of one job.
type executor interface {
	// prepare may be called again after a cleanup.
	prepare(ctx context.Context) error
	run(ctx context.Context, stage, script string) error
	cleanup()
}

// custom is gitlab-runner's custom executor.
type custom struct {
	config Runner
	job    *job.Job
	log    *output
	took   func(call string) func() // starts a stopwatch

	dir         string
	payloadFile string
	jobEnv      map[string]string
}

func (c *custom) prepare(ctx context.Context) (err error) {
	if c.config.Custom.RunExec == "" {
		return &buildError{err: fmt.Errorf("custom executor is missing RunExec"), reason: reasonConfiguration}
	}
	if c.dir, err = os.MkdirTemp("", "custom-executor"); err != nil {
		return err
	}
	c.payloadFile = filepath.Join(c.dir, "response.json")
	payload, err := json.Marshal(c.job.Payload)
	if err != nil {
		return fmt.Errorf("encoding job response file: %w", err)
	}
	if err := os.WriteFile(c.payloadFile, append(payload, '\n'), 0o600); err != nil {
		return fmt.Errorf("creating job response file: %w", err)
	}
	if err := c.configure(ctx); err != nil {
		return err
	}
	if c.config.Custom.PrepareExec == "" {
		return nil
	}
	defer c.took("prepare")()
	ctx, cancel := context.WithTimeout(ctx, seconds(c.config.Custom.PrepareExecTimeout, time.Hour))
	defer cancel()
	return c.call(c.config.Custom.PrepareExec, c.config.Custom.PrepareArgs, c.log, c.log).run(ctx)
}

// configure makes the config call and takes over what it answers.
func (c *custom) configure(ctx context.Context) error {
	var answer api.ConfigExecOutput
	if c.config.Custom.ConfigExec != "" {
		stop := c.took("config")
		ctx, cancel := context.WithTimeout(ctx, seconds(c.config.Custom.ConfigExecTimeout, time.Hour))
		defer cancel()
		var stdout bytes.Buffer
		err := c.call(c.config.Custom.ConfigExec, c.config.Custom.ConfigArgs, &stdout, c.log).run(ctx)
		stop()
		if err != nil {
			return err
		}
		if stdout.Len() > 0 {
			if err := json.Unmarshal(stdout.Bytes(), &answer); err != nil {
				return fmt.Errorf("error while parsing JSON output: %w", err)
			}
		}
	}
	if answer.JobEnv != nil {
		c.jobEnv = *answer.JobEnv
	}
	c.job.Hostname = or(answer.Hostname, "")
	c.log.println(c.greeting(answer.Driver))
	shared := or(answer.BuildsDirIsShared, false)
	err := c.job.SetDirs(or(answer.BuildsDir, c.config.BuildsDir), or(answer.CacheDir, c.config.CacheDir), shared)
	if err != nil {
		return &buildError{err: err, reason: reasonConfiguration}
	}
	return nil
}

func (c *custom) greeting(driver *api.DriverInfo) string {
	switch {
	case driver == nil || driver.Name == nil:
		return "Using Custom executor..."
	case driver.Version == nil:
		return fmt.Sprintf("Using Custom executor with driver %s...", *driver.Name)
	default:
		return fmt.Sprintf("Using Custom executor with driver %s %s...", *driver.Name, *driver.Version)
	}
}

func (c *custom) run(ctx context.Context, stage, script string) error {
	dir, err := os.MkdirTemp(c.dir, "script")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "script")
	if err := os.WriteFile(file, []byte(script), 0o700); err != nil {
		return err
	}
	if stage == "step_script" {
		c.log.warning("Starting with version 17.0 the 'build_script' stage will be replaced with 'step_script': " +
			"https://gitlab.com/groups/gitlab-org/-/epics/6112")
		stage = "build_script"
	}
	defer c.took("run " + stage)()
	args := slices.Concat(c.config.Custom.RunArgs, []string{file, stage})
	return c.call(c.config.Custom.RunExec, args, c.log, c.log).run(ctx)
}

// cleanup is never cut short by the job's end. What it prints goes to the
// runner's own log.
func (c *custom) cleanup() {
	defer func() { _ = os.RemoveAll(c.dir) }()
	if c.config.Custom.CleanupExec == "" {
		return
	}
	defer c.took("cleanup")()
	ctx, cancel := context.WithTimeout(context.Background(), seconds(c.config.Custom.CleanupExecTimeout, time.Hour))
	defer cancel()
	if err := c.call(c.config.Custom.CleanupExec, c.config.Custom.CleanupArgs, io.Discard, os.Stderr).run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Cleanup script failed:", err)
	}
}

func (c *custom) call(program string, args []string, stdout, stderr io.Writer) process {
	var env []string
	for key, value := range c.jobEnv {
		env = append(env, key+"="+value)
	}
	for _, v := range c.job.Variables() {
		env = append(env, "CUSTOM_ENV_"+v.Key+"="+v.Value)
	}
	return process{
		program: program, args: args, dir: c.dir, payloadFile: c.payloadFile,
		exitCodeFile: filepath.Join(c.dir, "build_exit_code"),
		env:          append(env, "CUSTOM_ENV_CI_JOB_SERVICES="+c.services()),
		stdout:       stdout, stderr: stderr,
		graceful: seconds(c.config.Custom.GracefulKillTimeout, 10*time.Minute),
		force:    seconds(c.config.Custom.ForceKillTimeout, 10*time.Second),
	}
}

// services is CI_JOB_SERVICES: first aliases only, and none is an empty string.
func (c *custom) services() string {
	type service struct {
		Name       string            `json:"name"`
		Alias      string            `json:"alias"`
		Entrypoint []string          `json:"entrypoint"`
		Command    []string          `json:"command"`
		Variables  map[string]string `json:"variables,omitempty"`
	}
	var list []service
	for _, s := range c.job.Services {
		entry := service{Name: s.Name, Alias: firstAlias(s), Entrypoint: s.Entrypoint, Command: s.Command}
		for _, v := range s.Variables {
			if entry.Variables == nil {
				entry.Variables = map[string]string{}
			}
			entry.Variables[v.Key] = v.Value
			if !v.Raw {
				entry.Variables[v.Key] = c.job.Expand(v.Value)
			}
		}
		list = append(list, entry)
	}
	if list == nil {
		return ""
	}
	data, err := json.Marshal(list)
	if err != nil {
		return ""
	}
	return string(data)
}

func firstAlias(s gitlab.Image) string {
	if aliases := job.Aliases(s); len(aliases) > 0 {
		return aliases[0]
	}
	return ""
}

func or[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}
