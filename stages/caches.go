package stages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/agent"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// runBetweenCaches runs a stage of a job with which berthd's caches have to
// do: berthd changes the working tree between the scripts, and stands in for
// those that would pack and unpack archives.
func (s *Stage) runBetweenCaches(ctx context.Context, st *state, script, stage string) error {
	switch stage {
	case "get_sources":
		return s.getSources(ctx, st, script)
	case "restore_cache":
		if st.Native {
			show(st.Restored)
			return nil
		}
	case "archive_cache", "archive_cache_on_failure":
		if st.Native {
			s.saveCaches(ctx, st, stage == "archive_cache")
			return nil
		}
	case "cleanup_file_variables":
		err := s.runScript(ctx, st, script, stage)
		if err == nil && st.Admission.Caches.Finish {
			s.finishCaches(ctx, st)
		}
		return err
	}
	err := s.runScript(ctx, st, script, stage)
	if stage == "build_script" || strings.HasPrefix(stage, "step_") {
		st.Succeeded = err == nil && (st.Succeeded || stage != "step_release")
		err = errors.Join(err, s.save(st))
	}
	return err
}

// getSources runs the script in the tree of an earlier job, and in a fresh
// one if it fails there: the tree may be damaged.
func (s *Stage) getSources(ctx context.Context, st *state, script string) error {
	const stage = "get_sources"
	fetched, err := s.cacheStep(ctx, st, api.StepFetch, api.CacheStep{})
	if err != nil {
		return fmt.Errorf("get the working tree: %w", err)
	}
	err = s.runScript(ctx, st, script, stage)
	if err != nil && ctx.Err() == nil && fetched.Kept {
		warn(ctx, "%s failed in the working tree that an earlier job left; it is tried again in a fresh one", stage)
		if _, stepErr := s.cacheStep(ctx, st, api.StepRefetch, api.CacheStep{}); stepErr != nil {
			return errors.Join(err, stepErr)
		}
		err = s.runScript(ctx, st, script, stage)
	}
	if err != nil {
		return err
	}
	content, err := s.content(ctx, st)
	if err != nil {
		return err
	}
	result, err := s.cacheStep(ctx, st, api.StepCheckout, api.CacheStep{Content: content})
	if err != nil {
		return err
	}
	show(result.Lines)
	st.Native, st.Restored, st.CacheEnv = result.Native, result.Restored, result.Env
	return s.save(st)
}

// saveCaches publishes the job's `cache:`. That it cannot does not fail the job.
func (s *Stage) saveCaches(ctx context.Context, st *state, success bool) {
	step := api.CacheStep{Success: success}
	if st.Admission.Caches.Untracked {
		out, err := s.ask(ctx, st, "cd "+quote(s.projectDir())+" && git -c safe.directory='*' ls-files --others -z")
		if err != nil {
			warn(ctx, "cannot list the untracked files for cache: %v", err)
		}
		step.Untracked = []byte(out)
	}
	result, err := s.cacheStep(ctx, st, api.StepSave, step)
	if err != nil {
		warn(ctx, "the job's caches are not saved: %v", err)
		return
	}
	show(result.Lines)
}

// finishCaches publishes the caches of which the job has copies, after its
// last script.
func (s *Stage) finishCaches(ctx context.Context, st *state) {
	result, err := s.cacheStep(ctx, st, api.StepFinish, api.CacheStep{Success: st.Succeeded})
	if err != nil {
		warn(ctx, "the job's caches are not published: %v", err)
		return
	}
	show(result.Lines)
}

// berthdPatience is how long a step waits for a berthd that is restarted.
const berthdPatience = 30 * time.Second

// cacheStep tells berthd, again if it is away just now.
func (s *Stage) cacheStep(ctx context.Context, st *state, name string, step api.CacheStep) (*api.CacheResult, error) {
	step.UID, step.GID = st.User.UID, st.User.GID
	return backoff.Retry(ctx, func() (*api.CacheResult, error) {
		result, err := s.Berthd.CacheStep(ctx, st.Job, name, step, func(line string) { fmt.Println(line) })
		if err != nil && !errdefs.IsUnavailable(err) {
			return nil, backoff.Permanent(err)
		}
		return result, err
	}, backoff.WithMaxElapsedTime(berthdPatience))
}

func show(lines []string) {
	for _, line := range lines {
		fmt.Println(line)
	}
}

func (s *Stage) projectDir() string { return s.Call.Variable("CI_PROJECT_DIR") }

// content asks git for the hashes of what the keys of caches name. What there
// is not is left out.
func (s *Stage) content(ctx context.Context, st *state) (map[string]string, error) {
	names := st.Admission.Caches.Content
	if len(names) == 0 {
		return nil, nil
	}
	var script strings.Builder
	fmt.Fprintf(&script, "cd %s || exit\n", quote(s.projectDir()))
	for i, name := range names {
		kind, path, _ := strings.Cut(name, ":")
		command := "hash-object --no-filters -- " + quote(path)
		if kind == "tree" {
			command = "rev-parse --verify --quiet " + quote("HEAD:"+strings.TrimSuffix(strings.TrimPrefix(path, "./"), "."))
		}
		fmt.Fprintf(&script, "printf '%d %%s\\n' \"$(git -c safe.directory='*' %s)\"\n", i, command)
	}
	out, err := s.ask(ctx, st, script.String())
	if err != nil {
		return nil, fmt.Errorf("hash what the keys of caches name: %w", err)
	}
	content := map[string]string{}
	for line := range strings.Lines(out) {
		number, hash, _ := strings.Cut(strings.TrimSpace(line), " ")
		if i, err := strconv.Atoi(number); err == nil && i >= 0 && i < len(names) && hash != "" {
			content[names[i]] = hash
		}
	}
	return content, nil
}

// quote makes one word of a text for the shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// maxAnswer bounds what is read of a script's output.
const maxAnswer = 64 << 20

// ask runs a script in the helper, as the build container's user, for its
// output. What it says of errors is for the job log.
func (s *Stage) ask(ctx context.Context, st *state, script string) (string, error) {
	text, err := sealed([]byte(script))
	if err != nil {
		return "", err
	}
	defer text.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	var answer bytes.Buffer
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(&answer, io.LimitReader(r, maxAnswer))
		_, _ = io.Copy(io.Discard, r)
		read <- err
	}()
	exit, err := runIn(ctx, st.Helper, agent.Stage{Script: text, Stdout: w, Stderr: os.Stderr, As: &st.User})
	w.Close()
	if err := errors.Join(err, <-read); err != nil {
		return "", err
	}
	if exit.Code != 0 {
		return answer.String(), executor.Failf("a script of Berth's ended with status %d", exit.Code)
	}
	return answer.String(), nil
}
