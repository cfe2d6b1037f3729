package test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

func TestScripts(t *testing.T) {
	large := strings.Repeat("0123456789", 10_000)
	runJobs(t, []jobCase{
		{
			name: "success",
			spec: gitlab.JobSpec{Script: []string{"cat README", "pwd", "id -u", "hostname"}},
			says: []string{"\nread me\n", "\n/builds/group/project\n", "\n0\n", "\nbuild\n", "Job succeeded"},
		},
		{
			name: "image of the profile",
			spec: gitlab.JobSpec{Image: gitlab.Image{Name: " "}, Script: []string{"git --version", "echo $BASH_VERSION"}},
			says: []string{"\ngit version "},
		},
		{
			name:  "exit code",
			spec:  gitlab.JobSpec{Script: []string{"echo before", "(exit 42)", "echo not reached"}},
			fails: true, exitCode: 42,
			says: []string{"\nbefore\n", "build_script: exit code 42", "Job failed: exit status 42"},
			not:  []string{"\nnot reached\n"},
		},
		{
			name:  "shell killed",
			spec:  gitlab.JobSpec{Script: []string{"kill -9 $$"}},
			fails: true, exitCode: 137,
			says: []string{"the shell was killed by killed"},
		},
		{
			name: "after_script after failure",
			spec: gitlab.JobSpec{
				Script:      []string{"sleep 1000 & echo $! >/tmp/background", "echo made >made", "exit 3"},
				AfterScript: []string{"cat made", "kill -0 $(cat /tmp/background) && echo the process lives", "echo status $CI_JOB_STATUS"},
			},
			fails: true, exitCode: 3,
			says: []string{"exit code 3", "\nmade\n", "\nthe process lives\n", "\nstatus failed\n"},
		},
		{
			name: "failing after_script",
			spec: gitlab.JobSpec{Script: []string{"true"}, AfterScript: []string{"exit 9"}},
			says: []string{"after_script: exit code 9", "Job succeeded"},
		},
		{
			name: "further steps",
			spec: gitlab.JobSpec{
				Script:     []string{"echo one >/tmp/file"},
				ExtraSteps: []gitlab.Step{{Name: "release", Script: []string{"cat /tmp/file", "echo released"}}},
			},
			says: []string{"\none\n", "\nreleased\n"},
		},
		{
			name: "variables",
			spec: gitlab.JobSpec{
				Variables: append(variables(
					"LINES", "one\ntwo\n\nfour",
					"QUOTES", "it's \"q\" \\ `x` $$(y) é ☂",
					"EMPTY", "",
					"PROJECT", "in $CI_PROJECT_PATH",
					"LARGE", large),
					gitlab.Variable{Key: "SECRET", Value: "s3cret-value", Masked: true},
					gitlab.Variable{Key: "RAW", Value: "$CI_PROJECT_PATH", Raw: true}),
				Script: []string{
					`printf '%s|\n' "$LINES" "$QUOTES" "$EMPTY" "$PROJECT" "$RAW" "$SECRET"`,
					`echo "${#LARGE} bytes, $(echo "$LARGE" | md5sum | cut -c 1-32)"`,
				},
			},
			says: []string{
				"\none\ntwo\n\nfour|\n", "it's \"q\" \\ `x` $(y) é ☂|\n|\nin group/project|\n$CI_PROJECT_PATH|\n[MASKED]|\n",
				"100000 bytes, " + md5sum(large+"\n"),
			},
		},
		{
			name: "file variables",
			spec: gitlab.JobSpec{
				Variables: []gitlab.Variable{{Key: "KEY_FILE", Value: "line one\n\"line\" two\n", File: true}},
				Script:    []string{`echo "at $KEY_FILE"`, `cat "$KEY_FILE"`, `stat -c 'mode %a' "$KEY_FILE"`},
			},
			says: []string{"at /builds/group/project.tmp/KEY_FILE\n", "\nline one\n\"line\" two\n"},
		},
		{
			name: "GITLAB_ENV",
			spec: gitlab.JobSpec{
				Script:      []string{`echo "LATER=from the script" >>"$GITLAB_ENV"`},
				AfterScript: []string{`echo "later: $LATER"`},
			},
			says: []string{"\nlater: from the script\n"},
		},
		{
			name: "environment is clean",
			spec: gitlab.JobSpec{Script: []string{
				"env | grep -E '^(JOB_RESPONSE_FILE|BUILD_FAILURE_EXIT_CODE|CUSTOM_ENV_)' || echo none of the runner",
				"ls -A /.berth", "cat /proc/1/cmdline | tr '\\0' ' '",
			}},
			says: []string{"\nnone of the runner\n"},
		},
		{
			name: "sh where there is no bash",
			spec: gitlab.JobSpec{Script: []string{"command -v bash || echo no bash here"}},
			says: []string{"\nno bash here\n"},
		},
		{
			name: "time-out",
			spec: gitlab.JobSpec{
				Script: []string{"echo begun", "sleep 600"}, AfterScript: []string{"echo not reached"},
				Timeout: 4 * time.Second,
			},
			fails: true, reason: "job_execution_timeout",
			says: []string{"\nbegun\n", "execution took longer than"},
			not:  []string{"\nnot reached\n"},
		},
	})
}

func TestCancel(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	j := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project,
		Image:   gitlab.Image{Name: registry.Image(images.Git)},
		Script: []string{
			"setsid sleep 1000 & echo $! >/tmp/background",
			"echo made >made",
			"while :; do echo tick; sleep 0.1; done",
		},
		AfterScript: []string{
			"cat made",
			"kill -0 $(cat /tmp/background) && echo the process lives",
			"echo status $CI_JOB_STATUS",
		},
	})
	require.NoError(t, j.WaitLog(t.Context(), "tick"))
	j.Cancel()
	require.Equal(t, gitlab.Canceled, end(t, j))
	inOrder(t, j.Log(), "tick\n", "build_script was stopped: the job was cancelled", "\nmade\n", "\nthe process lives\n", "\nstatus canceled\n")
	require.Less(t, j.Duration(), 30*time.Second)
}

// TestForceCancel drops a job at once: nothing of it runs on.
func TestForceCancel(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	j := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project,
		Script:  []string{"trap '' TERM", "while :; do echo tick; sleep 0.1; done"},
	})
	require.NoError(t, j.WaitLog(t.Context(), "tick"))
	j.ForceCancel()
	require.Equal(t, gitlab.Canceled, end(t, j))
	require.NoError(t, node.AwaitGone(t.Context(), j.ID))
}
