package job

import (
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

const tmpDirKey = "RUNNER_TEMP_PROJECT_DIR"

// Variables are all variables of the job, expanded; of equal keys the last
// counts. The order is the runner's: feature flags, what the runner knows,
// what GitLab sent, what the runner wants to have the last word on.
func (j *Job) Variables() []gitlab.Variable {
	if j.all != nil {
		return j.all
	}
	var list []gitlab.Variable
	for _, f := range flags {
		list = append(list, public(f.name, strconv.FormatBool(j.Flag(f.name))))
	}
	list = append(list, j.before()...)
	for _, v := range j.Payload.Variables {
		if !isFlag(v.Key) {
			list = append(list, v)
		}
	}
	j.all = expandAll(append(list, j.after()...))
	return j.all
}

// unresolved are the variables with flags as the job, not the runner, has them.
func (j *Job) unresolved() []gitlab.Variable {
	var list []gitlab.Variable
	for _, f := range flags {
		list = append(list, public(f.name, strconv.FormatBool(f.on)))
	}
	return expandAll(slices.Concat(list, j.before(), j.Payload.Variables, j.after()))
}

func public(key, value string) gitlab.Variable {
	return gitlab.Variable{Key: key, Value: value, Public: true}
}

func (j *Job) before() []gitlab.Variable {
	var list []gitlab.Variable
	if j.Image.Name != "" {
		list = append(list, public("CI_JOB_IMAGE", j.Image.Name))
	}
	list = append(list, public("CI_RUNNER_SHORT_TOKEN", j.Runner.shortToken()))
	for _, entry := range j.Runner.Environment {
		if key, value, ok := strings.Cut(entry, "="); ok {
			list = append(list, gitlab.Variable{Key: key, Value: value})
		}
	}
	return append(list,
		public("CI_BUILDS_DIR", j.RootDir),
		public("CI_PROJECT_DIR", j.BuildDir),
		public("CI_CONCURRENT_ID", strconv.Itoa(j.ConcurrentID)),
		public("CI_CONCURRENT_PROJECT_ID", strconv.Itoa(j.ProjectConcurrentID)),
		public("CI_SERVER", "yes"),
		public("CI_JOB_STATUS", j.status),
		public("CI_JOB_TIMEOUT", strconv.Itoa(int(j.Timeout().Seconds()))),
	)
}

func (j *Job) after() []gitlab.Variable {
	environment := "CI_SHARED_ENVIRONMENT"
	if j.Runner.Executor == "docker" {
		environment = "CI_DISPOSABLE_ENVIRONMENT"
	}
	return []gitlab.Variable{
		public(environment, "true"),
		public("CI_RUNNER_VERSION", Version),
		public("CI_RUNNER_REVISION", "HEAD"),
		public("CI_RUNNER_EXECUTABLE_ARCH", runtime.GOOS+"/"+runtime.GOARCH),
		public(tmpDirKey, j.TmpDir()),
	}
}

// Value is the value of a variable; of a file variable, the file's content.
func (j *Job) Value(key string) string { return value(j.Variables(), key) }

// Expand replaces $KEY and ${KEY}; a file variable stands for its path.
func (j *Job) Expand(s string) string { return expand(j.Variables(), s) }

func expandAll(list []gitlab.Variable) []gitlab.Variable {
	out := slices.Clone(list)
	for i := range out {
		if !out[i].Raw {
			out[i].Value = expand(list, out[i].Value)
		}
	}
	return out
}

func expand(list []gitlab.Variable, s string) string {
	return os.Expand(s, func(key string) string {
		switch {
		case key == "$":
			return key
		case len(key) == 1 && strings.ContainsAny(key, "*#@!?0123456789"):
			return ""
		}
		if v, ok := find(list, key); ok {
			if v.File {
				return path.Join(value(list, tmpDirKey), key)
			}
			return v.Value
		}
		return ""
	})
}

func value(list []gitlab.Variable, key string) string {
	v, _ := find(list, key)
	return v.Value
}

func find(list []gitlab.Variable, key string) (gitlab.Variable, bool) {
	for _, v := range slices.Backward(list) {
		if v.Key == key {
			return v, true
		}
	}
	return gitlab.Variable{}, false
}
