package image

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab.com/berth-ci/berth/node/docker/names"
)

// registry asks the registry of one image, or its mirrors, for it.
type registry struct {
	*job
	mu     sync.Mutex
	logins map[string]*login // by the host that asked for credentials
}

func newRegistry(j *job) *registry {
	return &registry{job: j, logins: map[string]*login{}}
}

// login is how far the credentials for a host have been tried.
type login struct {
	candidates []entry
	used       []string // the sources whose credentials were sent
	failures   []error  // of sources that could not say their credentials
	user       string
	secret     string
	have       bool // user and secret are to be used
	private    bool // they are the job's own
}

// resolve finds what the image's name stands for. As gitlab-runner does, it goes on to the next credentials if
// the registry refuses some.
func (r *registry) resolve(ctx context.Context) (*resolved, error) {
	for {
		options := config.HostOptions{Credentials: func(host string) (string, string, error) {
			return r.credentials(ctx, host)
		}}
		if r.HostsDir != "" {
			options.HostDir = config.HostDirFromRoot(r.HostsDir)
		}
		hosts, err := config.ConfigureHosts(ctx, options)(reference.Domain(r.named))
		if err != nil {
			return nil, err
		}
		resolver := docker.NewResolver(docker.ResolverOptions{
			// The same hosts for all requests of the pull share the token that the first one got.
			Hosts: func(string) ([]docker.RegistryHost, error) { return hosts, nil },
		})
		name, desc, err := resolver.Resolve(ctx, r.named.String())
		if err == nil {
			return &resolved{Resolver: resolver, name: name, desc: desc}, nil
		}
		if !refused(err) || !r.next() {
			return nil, err
		}
	}
}

// credentials is called for a host that demands them, possibly more than once.
func (r *registry) credentials(ctx context.Context, host string) (string, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.logins[host]
	if !ok {
		l = &login{candidates: r.keychain.match(registryHost(host) + "/" + reference.Path(r.named))}
		r.logins[host] = l
		for _, err := range r.keychain.takeProblems() {
			r.log.Printf("WARNING: %v", err)
		}
	}
	for !l.have && len(l.candidates) > 0 {
		c := l.candidates[0]
		l.candidates = l.candidates[1:]
		user, secret, err := c.get(ctx, registryHost(host))
		if err != nil {
			l.failures = append(l.failures, err)
			r.log.Printf("WARNING: %v", err)
			continue
		}
		if secret == "" {
			continue
		}
		l.user, l.secret, l.have, l.private = user, secret, true, !c.shared
		l.used = append(l.used, c.source)
		r.log.Printf("Authenticating with credentials from %s", c.source)
	}
	if !l.have {
		return "", "", ctx.Err()
	}
	return l.user, l.secret, nil
}

// next drops the credentials that were refused and tells whether there are others.
func (r *registry) next() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	more := false
	for host, l := range r.logins {
		if l.have && len(l.candidates) > 0 {
			r.log.Printf("Registry %s refused the credentials from %s", host, l.used[len(l.used)-1])
			l.have, more = false, true
		}
	}
	return more
}

// tried lists the sources whose credentials were sent, and what went wrong with others.
func (r *registry) tried() (sources []string, failures []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.logins {
		sources = append(sources, l.used...)
		failures = append(failures, l.failures...)
	}
	slices.Sort(sources)
	return slices.Compact(sources), failures
}

// private tells whether the registry gave the image to credentials of the job's own.
func (r *registry) private() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.logins {
		if l.have && l.private {
			return true
		}
	}
	return false
}

// resolved is a resolver that need not ask again. The name that the image is stored by may be another than the
// registry's.
type resolved struct {
	remotes.Resolver
	name, stored string
	desc         ocispec.Descriptor
}

func (r *resolved) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return r.stored, r.desc, nil
}

func (r *resolved) Fetcher(ctx context.Context, _ string) (remotes.Fetcher, error) {
	return r.Resolver.Fetcher(ctx, r.name)
}

func (r *resolved) labels() map[string]string {
	if strings.HasPrefix(r.stored, names.Domain+"/") {
		return map[string]string{names.OriginLabel: names.OriginRegistry}
	}
	return nil
}
