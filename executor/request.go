package executor

import (
	"regexp"
	"runtime"
	"strings"
)

// Job variables by which a job asks for more, or less, than its profile's
// defaults.
const (
	CPULimitVariable    = "BERTH_CPU_LIMIT"
	MemoryLimitVariable = "BERTH_MEMORY_LIMIT"
	SHMSizeVariable     = "BERTH_SHM_SIZE"

	// ownPrefix begins the names of all variables that are meant for Berth.
	ownPrefix = "BERTH_"
)

// Request is what a job asks of the node. It holds no secrets: it is sent to
// berthd and named in its journal and errors.
type Request struct {
	Job      Identity       `json:"job"`
	Image    ImageRequest   `json:"image"`
	Helper   string         `json:"helper_version"` // of gitlab-runner, for the default helper image
	Services []ImageRequest `json:"services,omitempty"`
	Sources  Sources        `json:"sources"`
	Caches   []Cache        `json:"caches,omitempty"`
	Mounts   []CacheMount   `json:"mounts,omitempty"`
	// Variables are the job's BERTH_* variables, as written; empty ones are
	// left out.
	Variables map[string]string `json:"variables,omitempty"`
}

// ImageRequest is an `image:` or a service, with references expanded.
type ImageRequest struct {
	Name         string   `json:"name"`
	Aliases      []string `json:"aliases,omitempty"`
	PullPolicies []string `json:"pull_policies,omitempty"`
	Platform     string   `json:"platform,omitempty"`
	User         string   `json:"user,omitempty"`
}

// NewRequest reads what the job of this call asks for.
func NewRequest(c *Call, p *Payload) Request {
	r := Request{
		Job:       p.Identity(),
		Image:     imageRequest(c, p.Image),
		Helper:    helperVersion(c.Variable("CI_RUNNER_VERSION")),
		Sources:   newSources(c),
		Caches:    caches(c, p),
		Mounts:    cacheMounts(c, p),
		Variables: map[string]string{},
	}
	for _, s := range p.Services {
		r.Services = append(r.Services, imageRequest(c, s))
	}
	for key, value := range c.Variables() {
		if value = strings.TrimSpace(value); value != "" && strings.HasPrefix(key, ownPrefix) {
			r.Variables[key] = value
		}
	}
	return r
}

func imageRequest(c *Call, i PayloadImage) ImageRequest {
	return ImageRequest{
		Name:         strings.TrimSpace(c.Expand(i.Name)),
		Aliases:      splitAliases(c.Expand(i.Alias)),
		PullPolicies: i.PullPolicies,
		Platform:     c.Expand(i.ExecutorOptions.Docker.Platform),
		User:         c.Expand(string(i.ExecutorOptions.Docker.User)),
	}
}

var releaseVersion = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)$`)

// helperVersion is the tag of gitlab-runner's helper image; pre-releases
// have none of their own.
func helperVersion(v string) string {
	if m := releaseVersion.FindStringSubmatch(v); m != nil {
		return "v" + m[1]
	}
	return "latest"
}

// helperArch is how gitlab-runner names architectures in helper tags.
var helperArch = map[string]string{"amd64": "x86_64", "arm64": "arm64", "arm": "arm", "s390x": "s390x", "ppc64le": "ppc64le", "riscv64": "riscv64"}[runtime.GOARCH]

func expandHelper(image, version string) string {
	return strings.NewReplacer("v{version}", version, "{version}", strings.TrimPrefix(version, "v"), "{arch}", helperArch).Replace(image)
}
