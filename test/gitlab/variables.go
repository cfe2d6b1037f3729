package gitlab

import (
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

func (j *Job) protected() bool {
	if j.spec.Protected != nil {
		return *j.spec.Protected
	}
	return j.spec.Ref == DefaultBranch && !j.spec.Tag
}

// repositoryURL is the clone address with the job's token in it.
func (j *Job) repositoryURL() string {
	u, err := url.Parse(j.srv.url)
	if err != nil {
		return ""
	}
	u.User = url.UserPassword("gitlab-ci-token", j.token)
	return u.JoinPath(j.spec.Project.Path + ".git").String()
}

// predefined are the variables that GitLab makes itself, in its order. What
// is here comes first, so that a job's own variables hide it.
func (j *Job) predefined(runnerTags []string) []Variable {
	spec, project := j.spec, j.spec.Project
	job, pipeline := strconv.FormatInt(j.ID, 10), strconv.FormatInt(j.pipeline, 10)
	server, err := url.Parse(j.srv.url)
	if err != nil {
		server = &url.URL{}
	}
	var list []Variable
	public := func(keysAndValues ...string) {
		for i := 0; i < len(keysAndValues); i += 2 {
			list = append(list, Variable{Key: keysAndValues[i], Value: keysAndValues[i+1], Public: true})
		}
	}
	secret := func(key, value string) {
		list = append(list, Variable{Key: key, Value: value, Masked: true})
	}
	public(
		"CI_PIPELINE_ID", pipeline,
		"CI_PIPELINE_URL", project.url()+"/-/pipelines/"+pipeline,
		"CI_JOB_ID", job,
		"CI_JOB_URL", project.url()+"/-/jobs/"+job,
	)
	secret("CI_JOB_TOKEN", j.token)
	public("CI_JOB_STARTED_AT", j.started.UTC().Format(time.RFC3339), "CI_REGISTRY_USER", "gitlab-ci-token")
	secret("CI_REGISTRY_PASSWORD", j.token)
	list = append(list, Variable{Key: "CI_REPOSITORY_URL", Value: j.repositoryURL()})
	public(
		"CI_DEPENDENCY_PROXY_SERVER", server.Host,
		"CI_JOB_NAME", spec.Name,
		"CI_JOB_NAME_SLUG", slug(spec.Name),
		"CI_JOB_STAGE", spec.Stage,
		"CI_NODE_TOTAL", "1",
		"CI", "true",
		"GITLAB_CI", "true",
		"CI_SERVER_URL", j.srv.url,
		"CI_SERVER_HOST", server.Hostname(),
		"CI_SERVER_PORT", server.Port(),
		"CI_SERVER_PROTOCOL", server.Scheme,
		"CI_SERVER_SHELL_SSH_HOST", server.Hostname(),
		"CI_SERVER_SHELL_SSH_PORT", "22",
		"CI_SERVER_NAME", "GitLab",
		"CI_SERVER_VERSION", "19.4.0-ee",
		"CI_SERVER_VERSION_MAJOR", "19",
		"CI_SERVER_VERSION_MINOR", "4",
		"CI_SERVER_VERSION_PATCH", "0",
		"CI_SERVER_REVISION", "0000000",
		"GITLAB_FEATURES", "",
		"CI_PROJECT_ID", strconv.FormatInt(project.ID, 10),
		"CI_PROJECT_NAME", project.name(),
		"CI_PROJECT_TITLE", project.name(),
		"CI_PROJECT_PATH", project.Path,
		"CI_PROJECT_PATH_SLUG", slug(project.Path),
		"CI_PROJECT_NAMESPACE", path.Dir(project.Path),
		"CI_PROJECT_ROOT_NAMESPACE", strings.Split(project.Path, "/")[0],
		"CI_PROJECT_URL", project.url(),
		"CI_PROJECT_VISIBILITY", "private",
		"CI_DEFAULT_BRANCH", DefaultBranch,
		"CI_CONFIG_PATH", ".gitlab-ci.yml",
		"CI_API_V4_URL", j.srv.url+"/api/v4",
		"CI_API_GRAPHQL_URL", j.srv.url+"/api/graphql",
		"CI_TEMPLATE_REGISTRY_HOST", server.Host,
		"CI_PIPELINE_IID", pipeline,
		"CI_PIPELINE_SOURCE", "push",
		"CI_PIPELINE_CREATED_AT", j.queued.UTC().Format(time.RFC3339),
		"CI_COMMIT_SHA", j.sha,
		"CI_COMMIT_SHORT_SHA", j.sha[:8],
		"CI_COMMIT_BEFORE_SHA", "0000000000000000000000000000000000000000",
		"CI_COMMIT_REF_NAME", spec.Ref,
		"CI_COMMIT_REF_SLUG", slug(spec.Ref),
	)
	if spec.Tag {
		public("CI_COMMIT_TAG", spec.Ref)
	} else {
		public("CI_COMMIT_BRANCH", spec.Ref)
	}
	public(
		"CI_COMMIT_REF_PROTECTED", strconv.FormatBool(j.protected()),
		"CI_COMMIT_TIMESTAMP", j.queued.UTC().Format(time.RFC3339),
		"CI_COMMIT_AUTHOR", author+" <"+authorMail+">",
		"CI_RUNNER_ID", "1",
		"CI_RUNNER_DESCRIPTION", "test",
		"CI_RUNNER_TAGS", `["`+strings.Join(runnerTags, `", "`)+`"]`,
		"GITLAB_USER_ID", "1",
		"GITLAB_USER_EMAIL", authorMail,
		"GITLAB_USER_LOGIN", "author",
		"GITLAB_USER_NAME", author,
	)
	return list
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slug is GitLab's: lower case, 63 bytes, no dash at either end.
func slug(s string) string {
	s = notSlug.ReplaceAllString(strings.ToLower(s), "-")
	return strings.Trim(s[:min(len(s), 63)], "-")
}
