package gitlab

// Payload is a job as GitLab answers it to a runner's request and as
// gitlab-runner hands it on to a custom executor in JOB_RESPONSE_FILE.
type Payload struct {
	ID            int64         `json:"id"`
	Token         string        `json:"token"`
	AllowGitFetch bool          `json:"allow_git_fetch"`
	JobInfo       JobInfo       `json:"job_info"`
	GitInfo       GitInfo       `json:"git_info"`
	RunnerInfo    RunnerInfo    `json:"runner_info"`
	Inputs        *struct{}     `json:"inputs,omitempty"` // the runner writes an empty object
	Variables     []Variable    `json:"variables"`
	Steps         []Step        `json:"steps"`
	Image         Image         `json:"image"`
	Services      []Image       `json:"services"`
	Artifacts     []Artifact    `json:"artifacts"`
	Cache         []Cache       `json:"cache"`
	Credentials   []Credential  `json:"credentials"`
	Dependencies  []Dependency  `json:"dependencies"`
	Features      Features      `json:"features"`
	Hooks         []Hook        `json:"hooks,omitempty"`
	PolicyOptions PolicyOptions `json:"policy_options"`
	Suspend       struct{}      `json:"suspend_options"`
}

// JobInfo says which job of which project this is.
type JobInfo struct {
	Name                                     string  `json:"name"`
	Stage                                    string  `json:"stage"`
	PipelineID                               int64   `json:"pipeline_id"`
	ProjectID                                int64   `json:"project_id"`
	ProjectName                              string  `json:"project_name"`
	ProjectFullPath                          string  `json:"project_full_path"`
	NamespaceID                              int64   `json:"namespace_id"`
	RootNamespaceID                          int64   `json:"root_namespace_id"`
	OrganizationID                           int64   `json:"organization_id"`
	InstanceID                               string  `json:"instance_id"`
	InstanceUUID                             string  `json:"instance_uuid"`
	UserID                                   int64   `json:"user_id"`
	TimeInQueueSeconds                       float64 `json:"time_in_queue_seconds"`
	ProjectJobsRunningOnInstanceRunnersCount string  `json:"project_jobs_running_on_instance_runners_count"`
	QueueSize                                int64   `json:"queue_size"`
	QueueDepth                               int64   `json:"queue_depth"`
}

// GitInfo says what to check out. Protected is what GitLab 18.3 and later send.
type GitInfo struct {
	RepoURL          string   `json:"repo_url"`
	RepoObjectFormat string   `json:"repo_object_format"`
	Ref              string   `json:"ref"`
	SHA              string   `json:"sha"`
	BeforeSHA        string   `json:"before_sha"`
	RefType          string   `json:"ref_type"`
	Refspecs         []string `json:"refspecs"`
	Depth            int      `json:"depth"`
	Protected        *bool    `json:"protected"`
}

// RunnerInfo holds what the runner is told about itself; Timeout in seconds.
type RunnerInfo struct {
	UUID    string `json:"uuid"`
	Timeout int    `json:"timeout"`
}

// Variable is a CI/CD variable. A raw one is not expanded.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	File   bool   `json:"file"`
	Masked bool   `json:"masked"`
	Raw    bool   `json:"raw"`
}

// Step is a script: "script", "after_script" or another such as "release".
type Step struct {
	Name         string   `json:"name"`
	Script       []string `json:"script"`
	Timeout      int      `json:"timeout"`
	When         string   `json:"when"`
	AllowFailure bool     `json:"allow_failure"`
}

// Image is an image or a service.
type Image struct {
	Name            string          `json:"name"`
	Alias           string          `json:"alias,omitempty"`
	Command         []string        `json:"command,omitempty"`
	Entrypoint      []string        `json:"entrypoint,omitempty"`
	Variables       []Variable      `json:"variables,omitempty"`
	PullPolicies    []string        `json:"pull_policy,omitempty"`
	ExecutorOptions ExecutorOptions `json:"executor_opts"`
}

// ExecutorOptions are the keywords that only some executors understand.
type ExecutorOptions struct {
	Docker     DockerOptions     `json:"docker"`
	Kubernetes KubernetesOptions `json:"kubernetes"`
}

// DockerOptions is `docker:` below `image:`.
type DockerOptions struct {
	Platform string `json:"platform"`
	User     string `json:"user"`
}

// KubernetesOptions is `kubernetes:` below `image:`.
type KubernetesOptions struct {
	User string `json:"user"`
}

// Artifact is one archive or report that the job uploads.
type Artifact struct {
	Name      string   `json:"name"`
	Untracked bool     `json:"untracked"`
	Paths     []string `json:"paths"`
	Exclude   []string `json:"exclude"`
	When      string   `json:"when"`
	Type      string   `json:"artifact_type"`
	Format    string   `json:"artifact_format"`
	ExpireIn  string   `json:"expire_in"`
}

// Cache is one entry of `cache:`.
type Cache struct {
	Key          string   `json:"key"`
	Untracked    bool     `json:"untracked"`
	Policy       string   `json:"policy"`
	Paths        []string `json:"paths"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys"`
}

// Credential opens a registry.
type Credential struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// Dependency is an earlier job whose artifacts are to be downloaded.
type Dependency struct {
	ID            int64         `json:"id"`
	Token         string        `json:"token"`
	Name          string        `json:"name"`
	ArtifactsFile ArtifactsFile `json:"artifacts_file"`
}

// ArtifactsFile names the archive of a dependency; empty where it has none.
type ArtifactsFile struct {
	Filename string `json:"filename"`
	Size     int64  `json:"size"`
}

// Features is what this GitLab can do.
type Features struct {
	TraceSections     bool      `json:"trace_sections"`
	TokenMaskPrefixes []string  `json:"token_mask_prefixes"`
	FailureReasons    []string  `json:"failure_reasons"`
	Tracing           *struct{} `json:"tracing"`
}

// Hook is a script that runs around another step, such as pre_get_sources_script.
type Hook struct {
	Name   string   `json:"name"`
	Script []string `json:"script"`
}

// PolicyOptions says whether a security policy made the job.
type PolicyOptions struct {
	PolicyJob bool   `json:"execution_policy_job"`
	Name      string `json:"policy_name"`
}
