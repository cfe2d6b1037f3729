package test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

// jobCase is a job and what is expected of it.
type jobCase struct {
	name     string
	profile  string // default where empty
	spec     gitlab.JobSpec
	fails    bool
	reason   string // script_failure where empty
	exitCode int
	says     []string // in the log, in this order
	not      []string // not in the log
}

// runJobs runs cases, several at a time.
func runJobs(t *testing.T, cases []jobCase) {
	s, project := theServer(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.spec.Project == nil {
				c.spec.Project = project
			}
			if c.profile == "" {
				c.profile = "default"
			}
			j := s.enqueue(t, c.profile, c.spec)
			state := end(t, j)
			if c.fails {
				if c.reason == "" {
					c.reason = "script_failure"
				}
				require.Equal(t, gitlab.Failed, state)
			} else {
				require.Equal(t, gitlab.Success, state)
			}
			require.Equal(t, c.reason, j.FailureReason())
			require.Equal(t, c.exitCode, j.ExitCode())
			inOrder(t, j.Log(), c.says...)
			for _, text := range c.not {
				require.NotContains(t, j.Log(), text)
			}
		})
	}
}

// inOrder finds texts in a log, each after the one before.
func inOrder(t *testing.T, log string, texts ...string) {
	t.Helper()
	rest := log
	for _, text := range texts {
		at := strings.Index(rest, text)
		if at < 0 {
			require.Contains(t, log, text)
			require.Failf(t, "out of order", "%q comes before what it should come after", text)
		}
		rest = rest[at+len(text):]
	}
}

// variables are public ones, of keys and values.
func variables(keysAndValues ...string) (list []gitlab.Variable) {
	for i := 0; i < len(keysAndValues); i += 2 {
		list = append(list, gitlab.Variable{Key: keysAndValues[i], Value: keysAndValues[i+1], Public: true})
	}
	return list
}
