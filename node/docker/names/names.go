// Package names keeps the names of images apart: a name that a job makes, by
// building, tagging, loading, importing, committing or pulling with its own
// credentials, is one of its project and trust tier alone. It never changes
// what the name means elsewhere.
//
// containerd has one table of names for all. What jobs make is stored there
// under
//
//	berth.invalid/PROJECT/TIER/REGISTRY/REPOSITORY:TAG
//
// and plain names are left to what registries said they are, to logins of the
// node's own, and to the node's operator. A job that asks for a name gets the
// first that there is of: its own tier's, the protected tier's of its project
// if it is of the other, the plain one. The protected never see what the
// unprotected made. The domain is reserved (RFC 2606): no registry answers to
// it, and jobs cannot name it.
//
// It looks nothing up and knows nothing of dockerd; it is light, since berth
// imports it.
package names

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Domain is the registry of names that jobs made.
const Domain = "berth.invalid"

// OriginLabel says on an image of a scope where it came from: OriginRegistry,
// or a job's own making where it is absent.
const (
	OriginLabel    = "berth.origin"
	OriginRegistry = "registry"
	// MakerLabel is the key of the job that made the name.
	MakerLabel = "berth.maker"
)

// Tiers of trust.
const (
	protected   = "protected"
	unprotected = "unprotected"
)

// Scope says whose names a job makes and sees.
type Scope struct {
	// Project is the project's key on this node, of a-z, 0-9 and -.
	Project   string `json:"project"`
	Protected bool   `json:"protected"`
}

var projectPattern = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// Parse reads an image name as a job writes it, tag or digest added. The
// reserved domain is refused.
func Parse(name string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if reference.Domain(named) == Domain {
		return nil, fmt.Errorf("image name %q: names of %s are the node's own: %w", name, Domain, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

func (s Scope) tier() string {
	if s.Protected {
		return protected
	}
	return unprotected
}

// Own is the stored form of a name that the job makes.
func (s Scope) Own(named reference.Named) (string, error) {
	if !projectPattern.MatchString(s.Project) {
		return "", fmt.Errorf("scope of project %q: %w", s.Project, errdefs.ErrInvalidArgument)
	}
	domain := reference.Domain(named)
	if domain == Domain || strings.ToLower(domain) != domain || strings.ContainsAny(domain, "[]") {
		return "", fmt.Errorf("image name %q: registry %q cannot be used by images that jobs make: write it in lower case, by name or IPv4 address: %w", named, domain, errdefs.ErrInvalidArgument)
	}
	// A colon cannot be in a path, and __ not in a domain.
	stored := fmt.Sprintf("%s/%s/%s/%s/%s", Domain, s.Project, s.tier(),
		strings.Replace(domain, ":", "__", 1), reference.Path(named))
	if tagged, ok := named.(reference.Tagged); ok {
		stored += ":" + tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		stored += "@" + digested.Digest().String()
	}
	if _, err := reference.ParseNormalizedNamed(stored); err != nil {
		return "", fmt.Errorf("image name %q: it is too long: %w: %w", named, err, errdefs.ErrInvalidArgument)
	}
	return stored, nil
}

// Tier is where the scope's names are stored, below Domain.
func (s Scope) Tier() string { return s.Project + "/" + s.tier() }

// above is the scope whose names show through where the job's own has none.
func (s Scope) above() (Scope, bool) {
	if s.Protected {
		return Scope{}, false
	}
	return Scope{Project: s.Project, Protected: true}, true
}

// Candidates are the stored names that a job's name may stand for, the first
// that exists counts. The last is the plain one.
func (s Scope) Candidates(named reference.Named) []string {
	if reference.Domain(named) == Domain {
		return nil // not even the plain one
	}
	var all []string
	if own, err := s.Own(named); err == nil {
		all = append(all, own)
	}
	if above, ok := s.above(); ok {
		if trusted, err := above.Own(named); err == nil {
			all = append(all, trusted)
		}
	}
	return append(all, named.String())
}

// Sees gives the name by which the job knows a stored name, if it does, and
// how near it is to the job: 0 its own, 1 the trusted one, 2 the plain one.
func (s Scope) Sees(stored string) (named reference.Named, depth int, ok bool) {
	if !strings.HasPrefix(stored, Domain+"/") {
		named, err := reference.ParseNormalizedNamed(stored)
		if err != nil || reference.Domain(named) == Domain {
			return nil, 0, false
		}
		return named, 2, true
	}
	whose, named, ok := Whose(stored)
	if !ok || whose.Project != s.Project {
		return nil, 0, false
	}
	switch {
	case whose == s:
	case whose.Protected:
		depth = 1
	default:
		return nil, 0, false
	}
	return named, depth, true
}

// Whose reads a stored name that a job made: whose it is, and what it is to
// its jobs.
func Whose(stored string) (s Scope, named reference.Named, ok bool) {
	rest, ok := strings.CutPrefix(stored, Domain+"/")
	parts := strings.SplitN(rest, "/", 4)
	if !ok || len(parts) != 4 || parts[1] != protected && parts[1] != unprotected {
		return Scope{}, nil, false
	}
	named, err := reference.ParseNormalizedNamed(strings.Replace(parts[2], "__", ":", 1) + "/" + parts[3])
	if err != nil {
		return Scope{}, nil, false
	}
	return Scope{Project: parts[0], Protected: parts[1] == protected}, named, true
}

// Owns tells whether a stored name is of the job's own tier, or of its
// repository alone where the name has no tag.
func (s Scope) Owns(stored string) bool {
	return strings.HasPrefix(stored, Domain+"/"+s.Project+"/"+s.tier()+"/")
}

// View sorts stored names as a job sees them: for each of the job's names the
// stored one that counts. Names that are hidden are left out.
func (s Scope) View(stored []string) map[string]string {
	view, depths := map[string]string{}, map[string]int{}
	sorted := slices.Sorted(slices.Values(stored))
	for _, name := range sorted {
		named, depth, ok := s.Sees(name)
		if !ok {
			continue
		}
		key := named.String()
		if old, seen := depths[key]; !seen || depth < old {
			view[key], depths[key] = name, depth
		}
	}
	return view
}
