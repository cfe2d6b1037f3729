package executor

import (
	"time"
)

// Pull policies, as gitlab-runner's docker executor names them.
const (
	PullAlways       = "always"
	PullIfNotPresent = "if-not-present"
	PullNever        = "never"
)

// Profile is what an operator grants the jobs of one runner. Runners choose
// one by `--profile` in their arguments, so that several of them, with other
// tags, share a node. Every field is documented in node/berthd.toml.example.
type Profile struct {
	Image               string   `toml:"image" json:"image"`
	HelperImage         string   `toml:"helper_image" json:"helper_image"`
	AllowedImages       []string `toml:"allowed_images" json:"allowed_images,omitempty"`
	AllowedServices     []string `toml:"allowed_services" json:"allowed_services,omitempty"`
	PullPolicy          []string `toml:"pull_policy" json:"pull_policy,omitempty"`
	AllowedPullPolicies []string `toml:"allowed_pull_policies" json:"allowed_pull_policies,omitempty"`
	CredentialHelpers   []string `toml:"credential_helpers" json:"credential_helpers,omitempty"`

	Concurrent int      `toml:"concurrent" json:"concurrent,omitempty"`
	Wait       Duration `toml:"wait" json:"wait"`

	CPUs       float64 `toml:"cpus" json:"cpus,omitempty"`
	CPUsMax    float64 `toml:"cpus_max" json:"cpus_max,omitempty"`
	Memory     Bytes   `toml:"memory" json:"memory,omitempty"`
	MemoryMax  Bytes   `toml:"memory_max" json:"memory_max,omitempty"`
	PIDs       int64   `toml:"pids" json:"pids,omitempty"`
	SHMSize    Bytes   `toml:"shm_size" json:"shm_size,omitempty"`
	SHMSizeMax Bytes   `toml:"shm_size_max" json:"shm_size_max,omitempty"`

	PrivilegedImages   []string `toml:"privileged_images" json:"privileged_images,omitempty"`
	PrivilegedServices []string `toml:"privileged_services" json:"privileged_services,omitempty"`
	// Docker gives jobs the node's docker daemon.
	Docker bool `toml:"docker" json:"docker"`
	// DockerPrivilegedImages may run privileged in containers that jobs start.
	DockerPrivilegedImages []string `toml:"docker_privileged_images" json:"docker_privileged_images,omitempty"`

	CapAdd      []string          `toml:"cap_add" json:"cap_add,omitempty"`
	CapDrop     []string          `toml:"cap_drop" json:"cap_drop,omitempty"`
	Devices     []string          `toml:"devices" json:"devices,omitempty"`
	Ulimits     map[string]string `toml:"ulimits" json:"ulimits,omitempty"`
	Sysctls     map[string]string `toml:"sysctls" json:"sysctls,omitempty"`
	Tmpfs       map[string]string `toml:"tmpfs" json:"tmpfs,omitempty"`
	ExtraHosts  []string          `toml:"extra_hosts" json:"extra_hosts,omitempty"`
	DNS         []string          `toml:"dns" json:"dns,omitempty"`
	DNSSearch   []string          `toml:"dns_search" json:"dns_search,omitempty"`
	Mounts      []string          `toml:"mounts" json:"mounts,omitempty"`
	User        string            `toml:"user" json:"user,omitempty"`
	Environment map[string]string `toml:"environment" json:"environment,omitempty"`

	WaitForServices Duration    `toml:"wait_for_services" json:"wait_for_services"`
	Egress          Egress      `toml:"egress" json:"egress"`
	GPU             GPUs        `toml:"gpu" json:"gpu"`
	Cache           CachePolicy `toml:"cache" json:"cache"`
	Builds          BuildPolicy `toml:"builds" json:"builds"`
}

// Egress says where a job's packets may go. Other jobs are never reachable.
type Egress struct {
	// Node lists ports of the node itself that jobs may reach: "tcp/5000".
	Node []string `toml:"node" json:"node,omitempty"`
	// Allow and Deny list addresses outside: "10.0.0.0/8", "192.0.2.7 tcp/443".
	// Allow is asked first, then Deny, then Default.
	Allow   []string `toml:"allow" json:"allow,omitempty"`
	Deny    []string `toml:"deny" json:"deny,omitempty"`
	Default string   `toml:"default" json:"default"`
}

// DefaultProfile has the docker executor's defaults, with limits on what can
// harm the node.
func DefaultProfile() Profile {
	return Profile{
		HelperImage:         "registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:{arch}-v{version}",
		AllowedImages:       []string{"**"},
		AllowedServices:     []string{"**"},
		PullPolicy:          []string{PullAlways},
		AllowedPullPolicies: []string{PullAlways, PullIfNotPresent, PullNever},
		Wait:                Duration(time.Hour),
		PIDs:                8192,
		SHMSize:             64 << 20,
		Docker:              true,
		WaitForServices:     Duration(30 * time.Second),
		Egress:              Egress{Default: "allow"},
		GPU:                 GPUs{Models: []string{"*"}, Wait: Duration(time.Hour)},
		Builds:              BuildPolicy{Enabled: true},
		Cache:               CachePolicy{Publish: PublishProtected, Wait: Duration(10 * time.Minute), Native: true, Workspace: true},
	}
}

// BuildPolicy is what a profile says of image builds.
type BuildPolicy struct {
	// Enabled gives each job a BuildKit.
	Enabled bool `toml:"enabled" json:"enabled"`
	// Entitlements are what builds may ask for (--allow).
	Entitlements []string `toml:"entitlements" json:"entitlements,omitempty"`
}

// BuildEntitlements are all that a profile can grant.
var BuildEntitlements = []string{"network.host", "security.insecure"}
