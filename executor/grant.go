package executor

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/distribution/reference"
)

// Grant is what a job gets: its request, with the profile's defaults filled
// in and its bounds kept.
type Grant struct {
	Build    ImageGrant   `json:"build"`
	Helper   ImageGrant   `json:"helper"`
	Services []ImageGrant `json:"services,omitempty"`
	Limits   Limits       `json:"limits"`
	Profile  Profile      `json:"profile"`
}

// ImageGrant is one image that the job may run, and how.
type ImageGrant struct {
	Name string `json:"name"`
	// Aliases of a service, in every form by which jobs may call it.
	Aliases      []string `json:"aliases,omitempty"`
	PullPolicies []string `json:"pull_policies"`
	Platform     string   `json:"platform,omitempty"`
	User         string   `json:"user,omitempty"`
	Privileged   bool     `json:"privileged,omitempty"`
	// Docker marks a service that is a docker daemon: the node's answers in
	// its place, and no container is started.
	Docker bool `json:"docker,omitempty"`
}

// HasDocker tells whether a service is answered by the node's docker.
func (g *Grant) HasDocker() bool {
	return slices.ContainsFunc(g.Services, func(s ImageGrant) bool { return s.Docker })
}

// isDind recognises docker:dind, of whatever version and registry.
func isDind(named reference.Named) bool {
	tagged, ok := named.(reference.Tagged)
	return ok && path.Base(reference.Path(named)) == "docker" && strings.Contains(tagged.Tag(), "dind")
}

// Limits hold for all containers of a job together; zero is no limit.
type Limits struct {
	CPUs    CPUs  `json:"cpus,omitempty"`
	Memory  Bytes `json:"memory,omitempty"`
	PIDs    int64 `json:"pids,omitempty"`
	SHMSize Bytes `json:"shm_size"`
}

// Grant decides on a request. What the job may not have is a BuildFailure
// that says which profile forbids it and what would be allowed.
func (p Profile) Grant(name string, r Request) (*Grant, error) {
	g := &Grant{Profile: p}
	build := r.Image
	if build.Name == "" {
		build.Name = p.Image
	}
	if build.Name == "" {
		return nil, Failf("the job names no image and profile %q has no default: add `image:` to the job, or `image` to [profile.%s]", name, name)
	}
	var err error
	if g.Build, err = p.grantImage(name, "image", build, p.AllowedImages, p.PrivilegedImages); err != nil {
		return nil, err
	}
	if g.Build.User == "" {
		g.Build.User = p.User
	}
	g.Helper = ImageGrant{Name: expandHelper(p.HelperImage, r.Helper), PullPolicies: helperPolicies(p.PullPolicy)}
	for i, s := range r.Services {
		if s.Name == "" {
			return nil, Failf("services[%d]: names no image", i)
		}
		service, err := p.grantImage(name, "service", s, p.AllowedServices, p.PrivilegedServices)
		if err != nil {
			return nil, err
		}
		for _, alias := range s.Aliases {
			if !isHostName(alias) {
				return nil, Failf("alias %q of service %q is not a host name: use letters, digits, - and _, 63 at most between dots", alias, s.Name)
			}
		}
		service.Aliases = ServiceNames(s.Name, s.Aliases)
		if named, err := reference.ParseDockerRef(s.Name); err == nil && p.Docker && isDind(named) {
			service.Docker, service.Privileged = true, false
		}
		g.Services = append(g.Services, service)
	}
	if g.Limits, err = p.grantLimits(name, r.Variables); err != nil {
		return nil, err
	}
	return g, nil
}

func (p Profile) grantImage(profile, what string, r ImageRequest, allowed, privileged []string) (ImageGrant, error) {
	named, err := reference.ParseDockerRef(r.Name)
	if err != nil {
		return ImageGrant{}, Failf("%s %q is not an image name: %w; expected something like golang:1.26 or registry.example.com/group/app@sha256:…", what, r.Name, err)
	}
	if !MatchImage(allowed, r.Name, named) {
		return ImageGrant{}, Failf("%s %q is not allowed by profile %q; allowed are: %s", what, r.Name, profile, strings.Join(allowed, ", "))
	}
	policies := r.PullPolicies
	if len(policies) == 0 {
		policies = p.PullPolicy
	}
	for _, policy := range policies {
		if !slices.Contains(p.AllowedPullPolicies, policy) {
			return ImageGrant{}, Failf("pull_policy %q of %s %q is not allowed by profile %q; allowed are: %s", policy, what, r.Name, profile, strings.Join(p.AllowedPullPolicies, ", "))
		}
	}
	return ImageGrant{
		Name:         named.String(),
		PullPolicies: policies,
		Platform:     r.Platform,
		User:         r.User,
		Privileged:   MatchImage(privileged, r.Name, named),
	}, nil
}

// helperPolicies keeps the helper from being asked for at the registry in
// each job: its tag names one version for good.
func helperPolicies(policies []string) []string {
	if slices.Equal(policies, []string{PullNever}) {
		return policies
	}
	return []string{PullIfNotPresent}
}

// MatchImage tells whether a pattern matches the image as written or in
// full: "golang:*" and "docker.io/library/golang:*" both match golang:1.26.
func MatchImage(patterns []string, written string, named reference.Named) bool {
	names := []string{written, named.String(), reference.FamiliarString(named)}
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			ok, _ := doublestar.Match(pattern, name) // patterns are checked when the profile is read
			return ok
		})
	})
}

func (p Profile) grantLimits(profile string, asked map[string]string) (Limits, error) {
	l := Limits{CPUs: CPUs(p.CPUs), Memory: p.Memory, PIDs: p.PIDs, SHMSize: p.SHMSize}
	if v, ok := asked[CPULimitVariable]; ok {
		cpus, err := ParseCPUs(v)
		if err != nil {
			return l, Failf("%s: %w", CPULimitVariable, err)
		}
		if most := CPUs(atLeast(p.CPUsMax, p.CPUs)); most != 0 && cpus > most {
			return l, overLimit(CPULimitVariable, cpus, profile, most)
		}
		l.CPUs = cpus
	}
	for _, size := range []struct {
		variable  string
		limit     *Bytes
		most, min Bytes
	}{
		{MemoryLimitVariable, &l.Memory, atLeast(p.MemoryMax, p.Memory), 6 << 20}, // runc needs some to start
		{SHMSizeVariable, &l.SHMSize, atLeast(p.SHMSizeMax, p.SHMSize), 4 << 10},  // 0 is no limit to tmpfs
	} {
		v, ok := asked[size.variable]
		if !ok {
			continue
		}
		var n Bytes
		if err := n.UnmarshalText([]byte(v)); err != nil {
			return l, Failf("%s: %w", size.variable, err)
		}
		if n < size.min {
			return l, Failf("%s: %v is too little for a container: ask for at least %v", size.variable, n, size.min)
		}
		if size.most != 0 && n > size.most {
			return l, overLimit(size.variable, n, profile, size.most)
		}
		*size.limit = n
	}
	return l, nil
}

func overLimit(variable string, asked fmt.Stringer, profile string, most fmt.Stringer) error {
	return Failf("%s: %v is more than profile %q allows: ask for %v at most, or for a runner with a larger profile", variable, asked, profile, most)
}

// atLeast is the bound of what a job may ask for: the default where the
// profile sets no larger one, none where it sets neither.
func atLeast[T float64 | Bytes](most, byDefault T) T {
	if most == 0 {
		return byDefault
	}
	return max(most, byDefault)
}
