package executor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func call(env map[string]string) *Call {
	var environ []string
	for key, value := range env {
		environ = append(environ, key+"="+value)
	}
	return NewCall(environ)
}

func TestExit(t *testing.T) {
	codes := map[string]string{"BUILD_FAILURE_EXIT_CODE": "10", "SYSTEM_FAILURE_EXIT_CODE": "20"}
	for _, tt := range []struct {
		name   string
		err    error
		status int
		code   string
		log    string
	}{
		{"success", nil, 0, "", ""},
		{"ours", errors.New("disk on fire"), 20, "", "ERROR: berth: disk on fire\n"},
		{"the job's", Failf("no image"), 10, "", "ERROR: no image\n"},
		{"the job's, wrapped", fmt.Errorf("prepare: %w", Failf("no image")), 10, "", "ERROR: no image\n"},
		{"a script's", &BuildFailure{Err: errors.New("exit code 42"), ExitCode: 42}, 10, "42\n", "ERROR: exit code 42\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "exit_code")
			codes["BUILD_EXIT_CODE_FILE"] = file
			var log bytes.Buffer
			require.Equal(t, tt.status, call(codes).Exit(&log, tt.err))
			require.Equal(t, tt.log, log.String())
			b, err := os.ReadFile(file)
			if tt.code == "" {
				require.ErrorIs(t, err, os.ErrNotExist)
			}
			require.Equal(t, tt.code, string(b))
		})
	}
}

// Called by hand there are no codes; the runner before 17.9 names no file.
func TestExitWithoutRunner(t *testing.T) {
	var log bytes.Buffer
	require.Equal(t, 1, call(nil).Exit(&log, &BuildFailure{Err: errors.New("exit code 3"), ExitCode: 3}))
	require.Equal(t, 2, call(nil).Exit(&log, errors.New("ours")))
	require.Equal(t, 2, call(map[string]string{"SYSTEM_FAILURE_EXIT_CODE": "0"}).Exit(&log, errors.New("0 would be success")))
}

func TestNewRequestExpands(t *testing.T) {
	p, err := ParsePayload([]byte(payload))
	require.NoError(t, err)
	r := NewRequest(call(map[string]string{
		"CUSTOM_ENV_GO":                 "1.26",
		"CUSTOM_ENV_MORE":               "sql store",
		"CUSTOM_ENV_CI_RUNNER_VERSION":  "19.4.0",
		"CUSTOM_ENV_BERTH_MEMORY_LIMIT": " 2g ",
		"CUSTOM_ENV_CI_PROJECT_PATH":    "victim/project",
	}), p)
	require.Equal(t, "golang:1.26", r.Image.Name)
	require.Equal(t, "v19.4.0", r.Helper)
	require.Equal(t, map[string]string{"BERTH_MEMORY_LIMIT": "2g"}, r.Variables)
	require.Equal(t, "group/shop", r.Job.Project)
	require.Equal(t, []string{"db", "sql", "store"}, r.Services[0].Aliases)
}

func TestHelperVersion(t *testing.T) {
	for in, want := range map[string]string{
		"19.4.0": "v19.4.0", "v17.9.1": "v17.9.1", "": "latest", "19.5.0~pre.12.gabc": "latest", "latest@evil": "latest",
	} {
		require.Equal(t, want, helperVersion(in), in)
	}
}
