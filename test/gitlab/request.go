package gitlab

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

// payload is what the runner that asked gets. s.mu is held.
func (j *Job) payload(runnerTags []string) Payload {
	spec, project := j.spec, j.spec.Project
	project.mu.Lock()
	variables := slices.Concat(j.predefined(runnerTags), spec.Variables, project.variables)
	project.mu.Unlock()
	protected := j.protected()
	p := Payload{
		ID:            j.ID,
		Token:         j.token,
		AllowGitFetch: true,
		JobInfo: JobInfo{
			Name: spec.Name, Stage: spec.Stage, PipelineID: j.pipeline,
			ProjectID: project.ID, ProjectName: project.name(), ProjectFullPath: project.Path,
			NamespaceID: 1, RootNamespaceID: 1, OrganizationID: 1,
			InstanceID: "stand-in", InstanceUUID: instanceUUID, UserID: 1,
			TimeInQueueSeconds:                       time.Since(j.queued).Seconds(),
			ProjectJobsRunningOnInstanceRunnersCount: "0",
		},
		GitInfo: GitInfo{
			RepoURL:          j.repositoryURL(),
			RepoObjectFormat: "sha1",
			Ref:              spec.Ref,
			SHA:              j.sha,
			BeforeSHA:        "0000000000000000000000000000000000000000",
			RefType:          "branch",
			Depth:            20,
			Protected:        &protected,
		},
		RunnerInfo:   RunnerInfo{UUID: instanceUUID, Timeout: int(spec.Timeout.Seconds())},
		Variables:    variables,
		Image:        spec.Image,
		Services:     orEmpty(spec.Services),
		Artifacts:    slices.Clone(spec.Artifacts),
		Cache:        slices.Clone(spec.Cache),
		Credentials:  orEmpty(spec.Credentials),
		Dependencies: []Dependency{},
		Hooks:        spec.Hooks,
		Features: Features{
			TraceSections:     true,
			TokenMaskPrefixes: []string{"glpat-", "glcbt-", "glrt-"},
			FailureReasons:    failureReasons,
		},
	}
	j.addRefspecs(&p.GitInfo)
	j.addSteps(&p)
	j.addArchives(&p, protected)
	if spec.Edit != nil {
		spec.Edit(&p)
	}
	return p
}

const instanceUUID = "6f9c1d0e-1111-4222-8333-000000000000"

// failureReasons are those that a runner may report.
var failureReasons = []string{
	"unknown_failure", "script_failure", "api_failure", "stuck_or_timeout_failure",
	"runner_system_failure", "missing_dependency_failure", "runner_unsupported",
	"job_execution_timeout", "image_pull_failure", "configuration_error", "job_canceled",
}

// addRefspecs fetches the pipeline's own ref and the branch or tag; all of
// them without a depth.
func (j *Job) addRefspecs(git *GitInfo) {
	for _, v := range j.spec.Variables {
		if v.Key == "GIT_DEPTH" {
			git.Depth, _ = strconv.Atoi(v.Value) // like GitLab, 0 for what is no number
		}
	}
	pipeline := "refs/pipelines/" + strconv.FormatInt(j.pipeline, 10)
	git.Refspecs = []string{"+" + pipeline + ":" + pipeline}
	switch ref := j.spec.Ref; {
	case git.Depth == 0:
		git.Refspecs = append(git.Refspecs, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
	case j.spec.Tag:
		git.Refspecs = append(git.Refspecs, "+refs/tags/"+ref+":refs/tags/"+ref)
	default:
		git.Refspecs = append(git.Refspecs, "+refs/heads/"+ref+":refs/remotes/origin/"+ref)
	}
	if j.spec.Tag {
		git.RefType = "tag"
	}
}

func (j *Job) addSteps(p *Payload) {
	timeout := int(j.spec.Timeout.Seconds())
	p.Steps = append(p.Steps, Step{Name: "script", Script: j.spec.Script, Timeout: timeout, When: "on_success"})
	for _, step := range j.spec.ExtraSteps {
		step.Timeout, step.When = timeout, cmp.Or(step.When, "on_success")
		p.Steps = append(p.Steps, step)
	}
	if len(j.spec.AfterScript) > 0 {
		p.Steps = append(p.Steps, Step{
			Name: "after_script", Script: j.spec.AfterScript, Timeout: timeout, When: "always", AllowFailure: true,
		})
	}
}

// addArchives fills in what GitLab defaults in caches and artifacts and lists
// the artifacts of earlier jobs.
func (j *Job) addArchives(p *Payload, protected bool) {
	for i := range p.Artifacts {
		a := &p.Artifacts[i]
		a.When = cmp.Or(a.When, "on_success")
		a.Type = cmp.Or(a.Type, "archive")
		a.Format = cmp.Or(a.Format, "zip")
	}
	// GitLab, not the runner, keeps the caches of protected refs apart.
	suffix := "-non_protected"
	if protected {
		suffix = "-protected"
	}
	for i := range p.Cache {
		c := &p.Cache[i]
		c.Key = cmp.Or(c.Key, "default") + suffix
		c.Policy = cmp.Or(c.Policy, "pull-push")
		c.When = cmp.Or(c.When, "on_success")
		c.FallbackKeys = slices.Clone(orEmpty(c.FallbackKeys))
		for n := range c.FallbackKeys {
			c.FallbackKeys[n] += suffix
		}
	}
	for _, need := range j.spec.Dependencies {
		d := Dependency{ID: need.ID, Token: need.token, Name: need.spec.Name}
		if a, ok := need.artifacts["archive"]; ok {
			d.ArtifactsFile = ArtifactsFile{Filename: a.name, Size: a.size}
		}
		p.Dependencies = append(p.Dependencies, d)
	}
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
