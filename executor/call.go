package executor

import (
	"os"
	"path/filepath"

	"gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"
)

// VariablePrefix marks job variables in the environment of a call.
const VariablePrefix = "CUSTOM_ENV_"

// Call is the environment of one of gitlab-runner's four calls.
type Call struct {
	// TempDir is the runner's directory for this job: the same in all calls,
	// gone after the last.
	TempDir string
	// PayloadFile is the path of the job payload.
	PayloadFile string

	env           func(string) string
	buildFailure  int
	systemFailure int
	exitCodeFile  string
}

// CallFromEnvironment reads what gitlab-runner set, through os.Getenv or a
// stand-in for it.
func CallFromEnvironment(env func(string) string) *Call {
	c := &Call{
		TempDir:      env("TMPDIR"),
		PayloadFile:  env(api.JobResponseFileVariable),
		exitCodeFile: env(api.BuildCodeFileVariable),
		env:          env,
	}
	// The payload's folder is the job's own; TMPDIR may be the host's where
	// someone runs a call by hand.
	if c.PayloadFile != "" {
		c.TempDir = filepath.Dir(c.PayloadFile)
	}
	c.buildFailure, c.systemFailure = failureCodes(env)
	return c
}

// Variable is the value of a job variable as the runner expanded it. It may
// come from anyone: never take identity or trust from it.
func (c *Call) Variable(key string) string { return c.env(VariablePrefix + key) }

// Expand replaces $NAME and ${NAME} by job variables, as gitlab-runner does
// for image names, entrypoints and commands.
func (c *Call) Expand(s string) string { return os.Expand(s, c.Variable) }

// ExpandAll expands each string.
func (c *Call) ExpandAll(list []string) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = c.Expand(s)
	}
	return out
}
