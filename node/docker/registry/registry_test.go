package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/stretchr/testify/require"
)

func named(t *testing.T, name string) reference.Named {
	t.Helper()
	n, err := reference.ParseDockerRef(name)
	require.NoError(t, err)
	return n
}

func TestAnonymous(t *testing.T) {
	require.True(t, Anonymous(registry.AuthConfig{}))
	require.True(t, Anonymous(registry.AuthConfig{ServerAddress: "registry.example.com"}))
	for _, a := range []registry.AuthConfig{{Username: "u"}, {Password: "p"}, {Auth: "a"}, {IdentityToken: "i"}, {RegistryToken: "r"}} {
		require.False(t, Anonymous(a), "%+v", a)
	}
}

func TestFailure(t *testing.T) {
	text, err := json.Marshal(Failure("denied"))
	require.NoError(t, err)
	require.JSONEq(t, `{"error":"denied","errorDetail":{"message":"denied"}}`, string(text))
	for class, want := range map[error]string{
		errdefs.ErrNotFound:         "manifest for app:1 not found: manifest unknown",
		errdefs.ErrUnauthenticated:  "pull access denied for app, repository does not exist or may require 'docker login'",
		errdefs.ErrPermissionDenied: "pull access denied for app",
	} {
		err := refused(named(t, "app:1"), class)
		require.ErrorContains(t, err, want)
		require.ErrorIs(t, err, class)
	}
	other := errors.New("no route to host")
	require.Equal(t, other, refused(named(t, "app:1"), other))
}

// TestLogin has a login be for the registry that it came with, and no other:
// what is there asks for one on the way.
func TestLogin(t *testing.T) {
	var got []string
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		got = append(got, user+":"+password)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer s.Close()
	address := strings.TrimPrefix(s.URL, "http://") // of the loopback, where plain HTTP is tried
	image := named(t, address+"/app:1")
	for login, want := range map[registry.AuthConfig]string{
		{Username: "u", Password: "p"}:                  "u:p",
		{Username: "u", Password: "p", Auth: "ignored"}: "u:p",
	} {
		got = nil
		resolver, err := (&Registry{}).resolver(t.Context(), image, login, docker.NewInMemoryTracker())
		require.NoError(t, err)
		_, _, err = resolver.Resolve(t.Context(), image.String())
		require.True(t, errdefs.IsNotFound(err), err)
		require.Contains(t, got, want)
	}
	// A mirror of the registry is another.
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "registry.example.com"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "registry.example.com", "hosts.toml"), fmt.Appendf(nil, "server = %q\n", s.URL), 0o600))
	got, asked = nil, 0
	image = named(t, "registry.example.com/app:1")
	resolver, err := (&Registry{HostsDir: dir}).resolver(t.Context(), image, registry.AuthConfig{Username: "u", Password: "p"}, docker.NewInMemoryTracker())
	require.NoError(t, err)
	_, _, err = resolver.Resolve(t.Context(), image.String())
	require.Error(t, err)
	require.NotZero(t, asked)
	for _, login := range got {
		require.NotContains(t, login, "u:p")
	}
}
