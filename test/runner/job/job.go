// Package job is a job as the runner sees it: what GitLab sent, with the
// directories and variables that the runner adds, and the settings that are
// read from variables. It runs nothing.
package job

import (
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

// Version is the version of gitlab-runner whose behaviour is followed.
const Version = "19.4.0"

// Runner is what a job needs to know of the runner's configuration.
type Runner struct {
	URL            string
	Token          string
	CloneURL       string
	Environment    []string
	FeatureFlags   map[string]bool
	CustomBuildDir bool
	// Executor is custom or docker; the latter marks directories as safe for git.
	Executor string
}

// Job is a job that a runner works on.
type Job struct {
	*gitlab.Payload
	Runner Runner

	ConcurrentID        int // unique among the runner's jobs
	ProjectConcurrentID int // unique among the runner's jobs of the project
	Correlation         string

	Hostname string
	RootDir  string // builds_dir
	BuildDir string // of the project
	CacheDir string // of the project

	status string
	// Derived from all of the above when first asked for.
	all   []gitlab.Variable
	flags map[string]bool
}

// New returns a job without directories.
func New(payload *gitlab.Payload, runner Runner) *Job {
	j := &Job{Payload: payload, Runner: runner, status: "running"}
	payload.Inputs = &struct{}{}
	payload.Image.Name = j.Expand(payload.Image.Name)
	for i := range payload.Services {
		s := &payload.Services[i]
		s.Name, s.Alias = j.Expand(s.Name), j.Expand(s.Alias)
	}
	return j
}

// SetStatus changes CI_JOB_STATUS.
func (j *Job) SetStatus(status string) {
	j.status = status
	j.forget()
}

// forget makes everything derived be derived again.
func (j *Job) forget() { j.all, j.flags = nil, nil }

// SetDirs derives the job's directories from builds_dir and cache_dir. With
// shared set, several runners use the same builds_dir.
func (j *Job) SetDirs(buildsDir, cacheDir string, shared bool) error {
	switch {
	case buildsDir == "":
		return fmt.Errorf("the builds_dir is not configured")
	case cacheDir == "":
		return fmt.Errorf("the cache_dir is not configured")
	}
	j.RootDir, j.CacheDir = buildsDir, path.Join(cacheDir, j.projectDir(false))
	j.forget()
	clonePath := j.Settings().ClonePath
	switch rel, err := filepath.Rel(buildsDir, clonePath); {
	case clonePath == "":
		j.BuildDir = path.Join(buildsDir, j.projectDir(shared))
	case !j.Runner.CustomBuildDir:
		return fmt.Errorf("setting GIT_CLONE_PATH is not allowed, enable `custom_build_dir` feature")
	case err != nil || strings.HasPrefix(rel, ".."):
		return fmt.Errorf("the GIT_CLONE_PATH=%q has to be within %q", clonePath, buildsDir)
	default:
		j.BuildDir = path.Clean(clonePath)
	}
	j.forget()
	return nil
}

// projectDir is group/project, from the repository's address as in the runner.
func (j *Job) projectDir(shared bool) string {
	dir := fmt.Sprintf("project-%d", j.JobInfo.ProjectID)
	if u, err := url.Parse(j.GitInfo.RepoURL); err == nil && u.Host != "" {
		if slug := path.Clean(strings.TrimSuffix(u.Path, ".git")); slug != "." && !strings.Contains(slug, "..") {
			dir = slug
		}
	}
	if shared {
		dir = path.Join(j.Runner.shortToken(), fmt.Sprint(j.ProjectConcurrentID), dir)
	}
	if j.Settings().Strategy == StrategyEmpty {
		dir += "-empty"
	}
	return dir
}

// TmpDir holds file variables and git's templates.
func (j *Job) TmpDir() string { return j.BuildDir + ".tmp" }

var tokenPrefix = regexp.MustCompile(`^(glrt-(t[123]_)?|t[123]_|glrtr-|glcbt-)`)

// shortToken is the part of the token that may be shown.
func (r Runner) shortToken() string {
	token := tokenPrefix.ReplaceAllString(r.Token, "")
	return token[:min(len(token), 9)]
}

// Name is how the runner calls itself in a job's log.
func (r Runner) Name() string { return r.shortToken() }

// Aliases are the names of a service, which may be split by spaces or commas.
func Aliases(service gitlab.Image) []string {
	return strings.Fields(strings.ReplaceAll(service.Alias, ",", " "))
}
