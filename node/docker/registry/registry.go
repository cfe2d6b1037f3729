// Package registry pulls and pushes the images of jobs' docker commands, from
// the jobs' networks, with the logins that came with the command, and tells of
// its progress as dockerd does. The names by which images are stored need not
// be those that registries know them by.
package registry

import (
	"context"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry reaches registries for one containerd.
type Registry struct {
	Client      *containerd.Client
	Snapshotter string
	// HostsDir is a tree of hosts.toml files in containerd's format.
	HostsDir string
}

// Message is a line of progress, as the Docker API has it.
type Message struct {
	ID       string  `json:"id,omitempty"`
	Status   string  `json:"status,omitempty"`
	Progress *Detail `json:"progressDetail,omitempty"`
	Stream   string  `json:"stream,omitempty"`
	Error    string  `json:"error,omitempty"`
	Detail   *Error  `json:"errorDetail,omitempty"`
	Aux      any     `json:"aux,omitempty"`
}

// Detail is how far something is.
type Detail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

// Error is the end of a stream that failed.
type Error struct {
	Message string `json:"message"`
}

// Failure is the message that ends a stream.
func Failure(text string) Message { return Message{Error: text, Detail: &Error{Message: text}} }

// Anonymous tells that a login says nothing.
func Anonymous(a registry.AuthConfig) bool {
	return a.Username == "" && a.Password == "" && a.Auth == "" && a.IdentityToken == "" && a.RegistryToken == ""
}

// Repository is where images of one name are.
type Repository struct {
	*Registry
	named reference.Named
	// Authentic tells that what it says is what everybody would hear from the
	// registry of this name.
	Authentic bool
	hosts     []docker.RegistryHost
}

// Repository finds the way to a repository, for one call of a job's.
func (r *Registry) Repository(ctx context.Context, named reference.Named, job Job, login registry.AuthConfig) (*Repository, error) {
	hosts, authentic, err := r.hosts(ctx, reference.Domain(named), job, login)
	if err != nil {
		return nil, err
	}
	return &Repository{Registry: r, named: named, Authentic: authentic, hosts: hosts}, nil
}

// Close drops its connections.
func (r *Repository) Close() { closeIdle(r.hosts) }

func closeIdle(hosts []docker.RegistryHost) {
	for _, h := range hosts {
		h.Client.CloseIdleConnections()
	}
}

func (r *Repository) resolver(tracker docker.StatusTracker) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return r.hosts, nil },
		Tracker: tracker,
	})
}

// renamed is a resolver for one image whose stored name is not the registry's.
type renamed struct {
	remotes.Resolver
	registry, stored string
	desc             ocispec.Descriptor
}

func (r renamed) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return r.stored, r.desc, nil
}

func (r renamed) Fetcher(ctx context.Context, _ string) (remotes.Fetcher, error) {
	return r.Resolver.Fetcher(ctx, r.registry)
}
