// Package registry pulls and pushes the images of jobs' docker commands, with
// the logins that came with the command, and tells of its progress as dockerd
// does. The names by which images are stored need not be those that registries
// know them by.
package registry

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
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

// hub is Docker Hub, and the host that answers for it.
const (
	hub     = "docker.io"
	hubHost = "registry-1.docker.io"
)

// resolver speaks with the registry of an image. The login is for that
// registry alone, and not for its mirrors.
func (r *Registry) resolver(ctx context.Context, named reference.Named, login registry.AuthConfig, tracker docker.StatusTracker) (remotes.Resolver, error) {
	domain := reference.Domain(named)
	options := config.HostOptions{Credentials: func(host string) (string, string, error) {
		if host != domain && (domain != hub || host != hubHost) {
			return "", "", nil
		}
		if login.IdentityToken != "" {
			return "", login.IdentityToken, nil
		}
		return login.Username, login.Password, nil
	}}
	if r.HostsDir != "" {
		options.HostDir = config.HostDirFromRoot(r.HostsDir)
	}
	hosts, err := config.ConfigureHosts(ctx, options)(domain)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", domain, err)
	}
	return docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts, nil },
		Tracker: tracker,
	}), nil
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

// refused says in dockerd's words why a registry did not give or take an image.
func refused(named reference.Named, err error) error {
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("manifest for %s not found: manifest unknown: %w", reference.FamiliarString(named), err)
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return fmt.Errorf("pull access denied for %s, repository does not exist or may require 'docker login': %w", reference.FamiliarName(named), err)
	}
	return err
}
