package builds

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/entitlements"

	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Job is what builds of a job may do, and where they do it.
type Job struct {
	Key string // names the job; no other has it

	// Name is by what the job holds caches itself. A step that asks for a lock that its own job has would wait for it
	// without end, and is refused.
	Name string

	// Namespace is whose caches, results and images its builds have: those of a project and a trust tier. It is a word
	// of letters, digits and ._- with no other use.
	Namespace string

	Cgroup  string  // RUN steps are below it, so that the job's limits hold for them
	Network Network // of RUN steps, of ADD from the web and of registries; nil for none

	// Entitlements are those of BuildKit that a build may ask for (--allow): security.insecure is root of the node.
	// With network.host a step gets the job's network, as without; the node's is never given.
	Entitlements []string

	// Image tells by which name an image is kept on the node that a build exports by a name, or looks for; nil for the
	// same. Builds overwrite and find images of their own namespace alone.
	Image func(name string) (string, error)
	// Labels are put on an image that a build makes, by the name that it is kept by; nil for none.
	Labels func(name string) map[string]string
	// Find looks for an image on the node in place of that, for FROM where the registry is not asked or has none.
	Find func(ctx context.Context, name string) (images.Image, error)
}

// Network is a job's.
type Network interface {
	// Join makes a network namespace on it.
	Join(ctx context.Context) (Namespace, error)
	// Nameservers answer in it.
	Nameservers() []netip.Addr
	// Dialer connects from where the job itself is: localhost is the job's. Registries are reached by it.
	Dialer() namespace.Dialer
	// Own are the addresses where all that the job reaches is its own, beside its loopback.
	Own() []netip.Prefix
}

// Namespace is a network namespace that goes with Close.
type Namespace interface {
	Path() string
	Close() error
}

var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

var entitled = []string{
	string(entitlements.EntitlementNetworkHost), string(entitlements.EntitlementSecurityInsecure),
}

func (j Job) validate() error {
	if j.Key == "" {
		return fmt.Errorf("serve builds of a job without a key: %w", errdefs.ErrInvalidArgument)
	}
	if !word.MatchString(j.Namespace) {
		return fmt.Errorf("serve builds of %s: namespace %q is not a word: %w", j.Key, j.Namespace, errdefs.ErrInvalidArgument)
	}
	if !strings.HasPrefix(j.Cgroup, "/") || path.Clean(j.Cgroup) != j.Cgroup || j.Cgroup == "/" {
		return fmt.Errorf("serve builds of %s: cgroup %q is no path below the root: %w", j.Key, j.Cgroup, errdefs.ErrInvalidArgument)
	}
	for _, e := range j.Entitlements {
		if !slices.Contains(entitled, e) {
			return fmt.Errorf("serve builds of %s: no entitlement %q; expected %v: %w", j.Key, e, entitled, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (j Job) may(e entitlements.Entitlement) bool { return slices.Contains(j.Entitlements, string(e)) }

// id is the key as part of names.
func (j Job) id() string {
	sum := sha256.Sum256([]byte(j.Key))
	return hex.EncodeToString(sum[:8])
}
