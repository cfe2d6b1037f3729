package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Payload is the job as GitLab sent it (JOB_RESPONSE_FILE), cut down to the
// fields that Berth reads. Its strings hold variable references unexpanded.
type Payload struct {
	ID          int64          `json:"id"`
	JobInfo     JobInfo        `json:"job_info"`
	GitInfo     GitInfo        `json:"git_info"`
	Variables   []Variable     `json:"variables"`
	Image       PayloadImage   `json:"image"`
	Services    []PayloadImage `json:"services"`
	Credentials []Credential   `json:"credentials"`
	Cache       []payloadCache `json:"cache"`
	// Secrets are the names of variables that the runner gets elsewhere for the job.
	Secrets map[string]json.RawMessage `json:"secrets"`
}

// JobInfo names the job and its project.
type JobInfo struct {
	Name        string `json:"name"`
	Stage       string `json:"stage"`
	ProjectID   int64  `json:"project_id"`
	ProjectName string `json:"project_name"`
}

// GitInfo says what is checked out. Protected is nil on GitLab versions that
// do not send it.
type GitInfo struct {
	RepoURL   string `json:"repo_url"`
	Ref       string `json:"ref"`
	SHA       string `json:"sha"`
	Protected *bool  `json:"protected"`
}

// Variable is one job variable. The list is ordered and may hold a key more
// than once: GitLab's own come first, the job's later.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	File   bool   `json:"file"`
	Masked bool   `json:"masked"`
	Raw    bool   `json:"raw"`
}

// PayloadImage is an `image:` or one of `services:`.
type PayloadImage struct {
	Name            string       `json:"name"`
	Alias           string       `json:"alias"`
	Entrypoint      []string     `json:"entrypoint"`
	Command         []string     `json:"command"`
	Variables       []Variable   `json:"variables"`
	PullPolicies    pullPolicies `json:"pull_policy"`
	ExecutorOptions struct {
		Docker struct {
			Platform string    `json:"platform"`
			User     looseText `json:"user"`
		} `json:"docker"`
	} `json:"executor_opts"`
}

// splitAliases reads the names that a service asks for: the field may hold
// several, split by spaces or commas.
func splitAliases(alias string) []string {
	return strings.Fields(strings.ReplaceAll(alias, ",", " "))
}

// pullPolicies accepts one policy or a list: GitLab sends lists, older
// versions sent a string.
type pullPolicies []string

func (p *pullPolicies) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*p = nil
		if one != "" {
			*p = pullPolicies{one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(p))
}

// looseText accepts a string or a number: `user: 1000` is YAML's integer.
type looseText string

func (t *looseText) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err == nil {
		*t = looseText(s)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	*t = looseText(n.String())
	return nil
}

// Credential is a login that GitLab adds for its own registries.
type Credential struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// ReadPayload reads the file that gitlab-runner names in JOB_RESPONSE_FILE.
func ReadPayload(path string) (*Payload, error) {
	if path == "" {
		return nil, errors.New("JOB_RESPONSE_FILE is not set: berth is started by gitlab-runner 14 or later, as the program of a [runners.custom] section")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read job payload: %w", err)
	}
	return ParsePayload(b)
}

// ParsePayload decodes a job payload. Errors never quote it, since it holds
// the job's secrets.
func ParsePayload(b []byte) (*Payload, error) {
	var p Payload
	if err := json.Unmarshal(b, &p); err != nil {
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) {
			return nil, fmt.Errorf("decode job payload: field %q: expected %s, got %s", typ.Field, typ.Type, typ.Value)
		}
		var syn *json.SyntaxError
		if errors.As(err, &syn) {
			return nil, fmt.Errorf("decode job payload: not JSON at byte %d of %d", syn.Offset, len(b))
		}
		return nil, errors.New("decode job payload: not the JSON object that gitlab-runner writes")
	}
	if p.ID <= 0 {
		return nil, fmt.Errorf("decode job payload: field \"id\": expected a positive job id, got %d", p.ID)
	}
	return &p, nil
}

// First returns the first value of a variable. GitLab puts its own
// variables first, so it is the one that a job cannot have overridden.
func (p *Payload) First(key string) (string, bool) {
	for _, v := range p.Variables {
		if v.Key == key {
			return v.Value, true
		}
	}
	return "", false
}

// Has says whether the job's payload sets a variable at all, be it as one of
// `secrets:`; one that is in the environment only was set by the runner's
// operator.
func (p *Payload) Has(key string) bool {
	_, variable := p.First(key)
	_, secret := p.Secrets[key]
	return variable || secret
}
