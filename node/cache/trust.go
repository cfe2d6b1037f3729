package cache

import (
	"slices"

	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/executor"
)

// schedule is the source of pipelines that a schedule started.
const schedule = "schedule"

// strictness orders the policies from the strictest.
var strictness = []string{executor.PublishNever, executor.PublishScheduled, executor.PublishProtected, executor.PublishAlways}

// stricter is the stricter of two policies: what a job says can take from what its profile allows, and add nothing.
func stricter(a, b string) string {
	if b == "" || slices.Index(strictness, a) < slices.Index(strictness, b) {
		return a
	}
	return b
}

// policyOf is what holds for a cache mount.
func policyOf(profile executor.CachePolicy, c spec.Cache, operator bool) string {
	if operator && c.Publish != "" {
		return string(c.Publish)
	}
	return stricter(profile.Publish, string(c.Publish))
}

// refusal says why a job's writes are not published under a policy; nothing if they are.
func refusal(id executor.Identity, policy, wish string) string {
	forced := wish == "true"
	switch {
	case wish == "false":
		return executor.CachePublishVariable + " is false"
	case policy == executor.PublishNever:
		return "nothing is, by its policy"
	case policy == executor.PublishAlways:
		return ""
	case !id.Protected:
		return "only jobs of protected refs may"
	case policy == executor.PublishScheduled && id.Source != schedule && !forced:
		return "only scheduled pipelines may"
	}
	return ""
}
