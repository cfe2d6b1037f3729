package image

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Policy says whether an image is asked for at its registry or taken from the node.
type Policy string

// The pull policies, named as in .gitlab-ci.yml and gitlab-runner's config.toml.
const (
	// Always asks the registry, with the job's credentials; only what the node lacks is fetched.
	Always Policy = "always"
	// IfNotPresent asks the registry only for an image that the node lacks.
	IfNotPresent Policy = "if-not-present"
	// Never takes what the node has.
	Never Policy = "never"
)

// ParsePolicy reads a policy as users write it; the empty string is Always, as for gitlab-runner.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case "":
		return Always, nil
	case Always, IfNotPresent, Never:
		return p, nil
	}
	return "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
		"pull policy %q is not one; use %s, %s or %s", s, Always, IfNotPresent, Never))
}
