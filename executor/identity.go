package executor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
)

// Identity says whose job it is. It is taken from the payload alone: job
// variables in the environment can be set by anyone who writes the YAML.
type Identity struct {
	Server    string `json:"server"` // scheme://host[:port][/path] of GitLab
	ID        int64  `json:"id"`
	Name      string `json:"name"`
	Stage     string `json:"stage"`
	ProjectID int64  `json:"project_id"`
	Project   string `json:"project"` // group/project
	Ref       string `json:"ref"`
	SHA       string `json:"sha"`
	Protected bool   `json:"protected"`
	User      string `json:"user,omitempty"`
	Source    string `json:"source,omitempty"` // of the pipeline: push, schedule, merge_request_event, …
}

// Identity of the payload's job.
func (p *Payload) Identity() Identity {
	first := func(key string) string { v, _ := p.First(key); return v }
	id := Identity{
		Server:    strings.TrimRight(first("CI_SERVER_URL"), "/"),
		ID:        p.ID,
		Name:      p.JobInfo.Name,
		Stage:     p.JobInfo.Stage,
		ProjectID: p.JobInfo.ProjectID,
		Project:   first("CI_PROJECT_PATH"),
		Ref:       p.GitInfo.Ref,
		SHA:       p.GitInfo.SHA,
		User:      first("GITLAB_USER_LOGIN"),
		Source:    first("CI_PIPELINE_SOURCE"),
	}
	if id.Server == "" {
		id.Server = originOf(p.GitInfo.RepoURL)
	}
	if id.Project == "" {
		id.Project = p.JobInfo.ProjectName
	}
	if p.GitInfo.Protected != nil {
		id.Protected = *p.GitInfo.Protected
	} else {
		id.Protected = first("CI_COMMIT_REF_PROTECTED") == "true"
	}
	return id
}

func originOf(repo string) string {
	u, err := url.Parse(repo)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// Key names the job on this node: in containerd, the cgroup tree, the
// journal. Job ids are unique to one GitLab server only, hence the hash.
func (i Identity) Key() string {
	return fmt.Sprintf("j%d-%s", i.ID, hash(i.Server, fmt.Sprint(i.ProjectID))[:8])
}

// ProjectKey names the job's project on this node, for what a project keeps
// from job to job. Paths can hold anything and may be renamed; ids do not.
func (i Identity) ProjectKey() string {
	return fmt.Sprintf("p%d-%s", i.ProjectID, hash(i.Server)[:8])
}

// CacheKey names where the project's jobs keep their `cache:` on this node.
// Jobs of protected refs have a place of their own, which no others write to:
// the keys in it are chosen by scripts, and no defence.
func (i Identity) CacheKey() string {
	if i.Protected {
		return i.ProjectKey() + "-protected"
	}
	return i.ProjectKey() + "-unprotected"
}

func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}
