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
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/network/namespace"
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
	for _, c := range []struct {
		err, class error
		want       string
	}{
		{errdefs.ErrNotFound, errdefs.ErrNotFound, "not found"},
		{fmt.Errorf("%w: no basic auth credentials", docker.ErrInvalidAuthorization), docker.ErrInvalidAuthorization, "no basic auth credentials"},
		{fmt.Errorf("server message: insufficient_scope: %w", docker.ErrInvalidAuthorization), errdefs.ErrNotFound, "pull access denied for app, repository does not exist or may require 'docker login'"},
		{docker.Errors{docker.ErrorCodeDenied.WithMessage("not yours")}, errdefs.ErrPermissionDenied, "error from registry: not yours"},
		{docker.ErrorCodeTooManyRequests.WithMessage("slowly"), errdefs.ErrResourceExhausted, "error from registry: slowly"},
		{remoteerrors.ErrUnexpectedStatus{Status: "418 I'm a teapot", StatusCode: http.StatusTeapot}, errdefs.ErrUnknown, "418"},
		{remoteerrors.ErrUnexpectedStatus{StatusCode: http.StatusForbidden, Body: []byte(`{"errors":[{"code":"DENIED","message":"no","detail":"of them"}]}`)}, errdefs.ErrPermissionDenied, "error from registry: no - of them"},
	} {
		err := refused(named(t, "app:1"), c.err)
		require.ErrorContains(t, err, c.want)
		require.ErrorIs(t, err, c.class)
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
	address := strings.TrimPrefix(s.URL, "http://")
	image := named(t, address+"/app:1")
	dir := t.TempDir()
	for _, name := range []string{address, "registry.example.com"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", s.URL), 0o600))
	}
	ask := func(image reference.Named, login registry.AuthConfig) error {
		at, err := (&Registry{HostsDir: dir}).Repository(t.Context(), image, Job{}, login)
		require.NoError(t, err)
		defer at.Close()
		require.True(t, at.Authentic)
		_, _, err = at.resolver(docker.NewInMemoryTracker()).Resolve(t.Context(), image.String())
		return err
	}
	for login, want := range map[registry.AuthConfig]string{
		{Username: "u", Password: "p"}:                  "u:p",
		{Username: "u", Password: "p", Auth: "ignored"}: "u:p",
	} {
		got = nil
		err := ask(image, login)
		require.True(t, errdefs.IsNotFound(err), err)
		require.Contains(t, got, want)
	}
	// A mirror of the registry is another.
	got, asked = nil, 0
	require.Error(t, ask(named(t, "registry.example.com/app:1"), registry.AuthConfig{Username: "u", Password: "p"}))
	require.NotZero(t, asked)
	for _, login := range got {
		require.NotContains(t, login, "u:p")
	}
}

// TestHeadersForAll has an operator send a header of his own to all registries
// that he does not name.
func TestHeadersForAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a network namespace needs root")
	}
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("X-Node")
		w.WriteHeader(http.StatusNotFound)
	}))
	defer s.Close()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, anyHost), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, anyHost, "hosts.toml"), []byte("[header]\nx-node = \"ours\"\n"), 0o600))
	image := named(t, strings.TrimPrefix(s.URL, "http://")+"/app:1")
	job := Job{Dialer: namespace.Dialer{Path: "/proc/self/ns/net"}}
	at, err := (&Registry{HostsDir: dir}).Repository(t.Context(), image, job, registry.AuthConfig{})
	require.NoError(t, err)
	defer at.Close()
	_, _, err = at.resolver(docker.NewInMemoryTracker()).Resolve(t.Context(), image.String())
	require.True(t, errdefs.IsNotFound(err), err)
	require.Equal(t, "ours", got)
}
