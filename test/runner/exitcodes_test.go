package runner_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// TestExitCodes is the contract for the exit codes of each call.
func TestExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		call, script string
		reason       string
		exitCode     int
		calls        string
	}{
		"prepare: job's failure":  {"prepare", "exit $BUILD_FAILURE_EXIT_CODE", "script_failure", 1, "config prepare cleanup "},
		"prepare: system failure": {"prepare", "exit $SYSTEM_FAILURE_EXIT_CODE", "runner_system_failure", 0, strings.Repeat("config prepare cleanup ", 3)},
		"config: no JSON":         {"config", "echo what", "runner_system_failure", 0, strings.Repeat("config cleanup ", 3)},
		"run: job's failure":      {"run", "exit $BUILD_FAILURE_EXIT_CODE", "script_failure", 1, "config prepare run cleanup "},
		"run: unknown exit code":  {"run", "exit 9", "runner_system_failure", 0, "config prepare run cleanup "},
		"script: job's failure":   {"build_script", "echo 42 >$BUILD_EXIT_CODE_FILE; exit 1", "script_failure", 42, "config prepare run run run run cleanup "},
		"script: no exit code":    {"build_script", "exit 1", "script_failure", 1, "config prepare run run run run cleanup "},
		"script: bad exit code":   {"build_script", "echo x >$BUILD_EXIT_CODE_FILE; exit 1", "runner_system_failure", 0, "config prepare run run run run cleanup "},
		"script: system failure":  {"build_script", "exit 2", "runner_system_failure", 0, "config prepare run run run run cleanup "},
		"cleanup":                 {"cleanup", "exit 2", "", 0, "config prepare run run run run cleanup "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file, calls := filepath.Join(dir, "executor"), filepath.Join(dir, "calls")
			text := "#!/bin/bash\nprintf '%s ' $1 >>" + calls + "\n[ \"${3:-$1}\" != " + tc.call + " ] && [ $1 != " + tc.call + " ] || { " + tc.script + "; }\n" +
				`[ $1 != config ] || echo '{"builds_dir":"` + dir + `/b","cache_dir":"` + dir + `/c"}'` + "\n[ $1 != run ] || exec bash $2\n"
			require.NoError(t, os.WriteFile(file, []byte(text), 0o755))
			b := newBench(t, nil, func(r *runner.Runner) {
				r.Custom = runner.Custom{
					ConfigExec: file, ConfigArgs: []string{"config"}, PrepareExec: file, PrepareArgs: []string{"prepare"},
					RunExec: file, RunArgs: []string{"run"}, CleanupExec: file, CleanupArgs: []string{"cleanup"},
				}
			})
			j, state := b.run(t, gitlab.JobSpec{Script: []string{"true"}})
			if tc.reason == "" {
				require.Equal(t, gitlab.Success, state)
			} else {
				require.Equal(t, gitlab.Failed, state)
			}
			require.Equal(t, tc.reason, j.FailureReason())
			require.Equal(t, tc.exitCode, j.ExitCode())
			made, err := os.ReadFile(calls)
			require.NoError(t, err)
			require.Equal(t, tc.calls, string(made))
		})
	}
}
