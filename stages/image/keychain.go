package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/docker/cli/cli/config/configfile"
)

// Source is one place that credentials come from.
type Source struct {
	// Name is what the job log calls the source, such as DOCKER_AUTH_CONFIG.
	Name string

	// Config is a docker config file: auths, credHelpers and credsStore are read.
	Config []byte

	// AllowedHelpers are the credential helpers that Config may name. They are programs that run on the node, so
	// a Config that a job wrote may name only those that the operator listed.
	AllowedHelpers []string

	// AnyHelper lifts that limit, for a Config that the operator wrote.
	AnyHelper bool

	// Shared tells that what these credentials give is for all jobs of the node.
	Shared bool

	// Logins are credentials given directly, such as those of the job payload.
	Logins []Login
}

// Login is a user name and password for a registry.
type Login struct{ Registry, Username, Password string }

// HostSource reads the docker config file of the user that this process runs as; it is empty if there is none.
func HostSource() (Source, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return Source{}, fmt.Errorf("find docker config file: %w", err)
		}
		dir = filepath.Join(home, ".docker")
	}
	name := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Source{}, fmt.Errorf("read docker config file: %w", err)
	}
	return Source{Name: name, Config: b, AnyHelper: true}, nil
}

// Keychain holds the credentials of a job.
type Keychain struct {
	entries []entry

	mu       sync.Mutex
	problems []error
}

// entry gives credentials for the repositories under a path.
type entry struct {
	path   string // registry.example.com or registry.example.com/group; empty stands for all
	source string
	shared bool
	get    getter
}

// getter finds the credentials for a registry; an empty secret says that there are none. A secret without a user
// is an identity token.
type getter func(ctx context.Context, registry string) (user, secret string, err error)

// NewKeychain makes a keychain of sources, the most important first. A source that cannot be read is left out and
// reported in the job log when credentials are first needed, as gitlab-runner does.
func NewKeychain(sources ...Source) *Keychain {
	k := &Keychain{}
	for _, s := range sources {
		if err := k.add(s); err != nil {
			k.problems = append(k.problems, fmt.Errorf("credentials from %s are not used: %w", s.Name, err))
		}
	}
	return k
}

// add orders the entries of a source like docker: helpers of a registry, then the general one, then plain logins.
func (k *Keychain) add(s Source) error {
	var file configfile.ConfigFile
	if err := file.LoadFromReader(bytes.NewReader(s.Config)); err != nil {
		return fmt.Errorf("not a docker config file: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(file.CredentialHelpers)) {
		k.entries = append(k.entries, entry{registryPath(key), s.Name, s.Shared, s.helper(file.CredentialHelpers[key], key)})
	}
	if file.CredentialsStore != "" {
		k.entries = append(k.entries, entry{"", s.Name, s.Shared, s.helper(file.CredentialsStore, "")})
	}
	for _, key := range slices.Sorted(maps.Keys(file.AuthConfigs)) {
		auth := file.AuthConfigs[key]
		if auth.IdentityToken != "" {
			auth.Username, auth.Password = "", auth.IdentityToken
		}
		k.entries = append(k.entries, entry{registryPath(key), s.Name, s.Shared, plain(auth.Username, auth.Password)})
	}
	for _, l := range s.Logins {
		k.entries = append(k.entries, entry{registryPath(l.Registry), s.Name, s.Shared, plain(l.Username, l.Password)})
	}
	return nil
}

func plain(user, secret string) getter {
	return func(context.Context, string) (string, string, error) { return user, secret, nil }
}

// match returns the entries for a repository such as registry.example.com/group/image: those for the longest part
// of its path first, and of these the most important source first.
func (k *Keychain) match(repository string) []entry {
	host, _, _ := strings.Cut(repository, "/")
	var list []entry
	for _, e := range k.entries {
		e.path = cmp.Or(e.path, host)
		if repository == e.path || strings.HasPrefix(repository, e.path+"/") {
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list, func(a, b entry) int { return cmp.Compare(len(b.path), len(a.path)) })
	return list
}

// takeProblems returns what is wrong with the sources, once.
func (k *Keychain) takeProblems() []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	problems := k.problems
	k.problems = nil
	return problems
}

// hub is Docker Hub; its other names are those of its index and of the host that serves it.
const hub = "docker.io"

// registryHost returns the name under which image names know a host.
func registryHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return hub
	}
	return host
}

// registryPath reads a key of a docker config file: HOST, HOST/PATH, or a URL, of which only the host counts.
func registryPath(key string) string {
	lower := strings.ToLower(key)
	for _, scheme := range []string{"https://", "http://"} {
		if strings.HasPrefix(lower, scheme) {
			host, _, _ := strings.Cut(lower[len(scheme):], "/")
			return registryHost(host)
		}
	}
	host, path, _ := strings.Cut(strings.TrimSuffix(key, "/"), "/")
	host = registryHost(host)
	if path, _, _ = strings.Cut(path, ":"); path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}
