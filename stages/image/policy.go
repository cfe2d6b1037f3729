package image

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
