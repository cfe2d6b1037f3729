package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"strings"

	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/executor"
)

// The tiers of trust. What jobs of one write, those of a higher one never read.
const (
	protected   = "protected"
	unprotected = "unprotected"
)

func tierOf(id executor.Identity) string {
	if id.Protected {
		return protected
	}
	return unprotected
}

// Namespace is where a job's cache mounts are, and those of the builds that it starts.
func Namespace(id executor.Identity) string { return namespace(id, spec.Project, tierOf(id)) }

// namespace keeps what a scope and tier have in common from all others. Nothing in a cache's own name leads out.
func namespace(id executor.Identity, scope spec.Scope, tier string) string {
	name := id.ProjectKey()
	switch scope {
	case spec.Group:
		name = "g-" + digest(id.Server, path.Dir(id.Project))
	case spec.Node:
		name = "node"
	}
	return name + "-" + tier
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// Kinds of generations, which are parts of their keys.
const (
	kindSnapshot  = "snapshot" // BERTH_CACHE_1
	kindCache     = "cache"    // cache:
	kindWorkspace = "workspace"
)

func generationKey(namespace, kind, name string) string { return namespace + "/" + kind + "/" + name }

// owned is the name of what a user wrote: files carry their owners.
func owned(u User, name string) string { return fmt.Sprintf("%d.%d/%s", u.UID, u.GID, name) }

// ownerOf undoes owned.
func ownerOf(name string) (u User, rest string) {
	owner, rest, _ := strings.Cut(name, "/")
	if _, err := fmt.Sscanf(owner, "%d.%d", &u.UID, &u.GID); err != nil {
		return User{}, name
	}
	return u, rest
}

// Project tells whose a key is, without the tier.
func Project(key string) string {
	name, _, _ := strings.Cut(key, "/")
	name = strings.TrimSuffix(name, "-"+unprotected)
	return strings.TrimSuffix(name, "-"+protected)
}

// Suffixes that GitLab gives the keys of `cache:`, unless a project turned that off.
const (
	protectedSuffix   = "-protected"
	unprotectedSuffix = "-non_protected"
)

// line is a key of generations that a job may read.
type line struct {
	namespace string
	name      string
}

func (l line) key(kind string) string { return generationKey(l.namespace, kind, l.name) }

// readable lists the lines that a job may read under a name: those of its own tier, and of the trusted ones if it is
// of neither.
func readable(id executor.Identity, scope spec.Scope, name string) []line {
	lines := []line{{namespace(id, scope, tierOf(id)), name}}
	if !id.Protected {
		trusted := namespace(id, scope, protected)
		lines = append(lines, line{trusted, name})
		if plain, ok := strings.CutSuffix(name, unprotectedSuffix); ok {
			lines = append(lines, line{trusted, plain + protectedSuffix})
		}
	}
	return lines
}
