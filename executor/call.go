package executor

import (
	"os"
	"path/filepath"
	"strings"

	"gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"
)

// variablePrefix marks job variables in the environment of a call.
const variablePrefix = "CUSTOM_ENV_"

// Call is the environment of one of gitlab-runner's four calls.
type Call struct {
	// TempDir is the runner's directory for this job: the same in all calls,
	// gone after the last.
	TempDir string
	// PayloadFile is the path of the job payload.
	PayloadFile string

	variables     map[string]string
	buildFailure  int
	systemFailure int
	exitCodeFile  string
}

// NewCall reads what gitlab-runner set: os.Environ, or a stand-in for it.
func NewCall(environ []string) *Call {
	c := &Call{variables: map[string]string{}}
	own := map[string]string{}
	for _, entry := range environ {
		key, value, _ := strings.Cut(entry, "=")
		if variable, ok := strings.CutPrefix(key, variablePrefix); ok {
			c.variables[variable] = value
		} else {
			own[key] = value
		}
	}
	c.TempDir = own["TMPDIR"]
	c.PayloadFile = own[api.JobResponseFileVariable]
	c.exitCodeFile = own[api.BuildCodeFileVariable]
	c.buildFailure, c.systemFailure = failureCodes(own)
	// The payload's folder is the job's own; TMPDIR may be the host's where
	// someone runs a call by hand.
	if c.PayloadFile != "" {
		c.TempDir = filepath.Dir(c.PayloadFile)
	}
	return c
}

// Variables are all job variables as the runner expanded them.
func (c *Call) Variables() map[string]string { return c.variables }

// Variable is the value of a job variable as the runner expanded it. It may
// come from anyone: never take identity or trust from it.
func (c *Call) Variable(key string) string { return c.variables[key] }

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
