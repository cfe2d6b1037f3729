package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func auth(user, secret string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))
}

// auths is a docker config file with one login for each key, whose user is the key's name.
func auths(logins map[string]string) []byte {
	var entries []string
	for key, user := range logins {
		entries = append(entries, fmt.Sprintf("%q: {%q: %q}", key, "auth", auth(user, "secret-of-"+user)))
	}
	return []byte(`{"auths": {` + strings.Join(entries, ",") + `}}`)
}

// users asks a keychain for all it has for a repository: "source:user".
func users(t *testing.T, k *Keychain, repository string) []string {
	t.Helper()
	host, _, _ := strings.Cut(repository, "/")
	var list []string
	for _, e := range k.match(repository) {
		user, secret, err := e.get(t.Context(), host)
		switch {
		case err != nil:
			list = append(list, e.source+":error")
		case secret == "":
			list = append(list, e.source+":none")
		default:
			list = append(list, e.source+":"+user)
		}
	}
	return list
}

func TestKeychainMatch(t *testing.T) {
	tests := []struct {
		name       string
		sources    []Source
		repository string
		want       []string
	}{
		{"host", []Source{{Name: "a", Config: auths(map[string]string{"registry.test": "u", "other.test": "v"})}},
			"registry.test/group/image", []string{"a:u"}},
		{"host with port", []Source{{Name: "a", Config: auths(map[string]string{"registry.test:5000": "u", "registry.test": "v"})}},
			"registry.test:5000/image", []string{"a:u"}},
		{"host in capitals", []Source{{Name: "a", Config: auths(map[string]string{"Registry.Test": "u"})}},
			"registry.test/image", []string{"a:u"}},
		{"URL", []Source{{Name: "a", Config: auths(map[string]string{"https://registry.test/v2/": "u"})}},
			"registry.test/image", []string{"a:u"}},
		{"hub by its index", []Source{{Name: "a", Config: auths(map[string]string{"https://index.docker.io/v1/": "u"})}},
			"docker.io/library/alpine", []string{"a:u"}},
		{"hub by the index's name", []Source{{Name: "a", Config: auths(map[string]string{"index.docker.io/v1/": "u"})}},
			"docker.io/library/alpine", []string{"a:u"}},
		{"longest path first", []Source{{Name: "a", Config: auths(map[string]string{
			"registry.test": "host", "registry.test/group/sub": "sub", "registry.test/group": "group"})}},
			"registry.test/group/sub/image", []string{"a:sub", "a:group", "a:host"}},
		{"a path ends at a slash", []Source{{Name: "a", Config: auths(map[string]string{"registry.test/gro": "u"})}},
			"registry.test/group/image", nil},
		{"a host ends at a slash", []Source{{Name: "a", Config: auths(map[string]string{"registry.test": "u"})}},
			"registry.test.evil/image", nil},
		{"the image itself, with a tag", []Source{{Name: "a", Config: auths(map[string]string{"registry.test/group/image:1": "u"})}},
			"registry.test/group/image", []string{"a:u"}},
		{"sources in order", []Source{
			{Name: "a", Config: auths(map[string]string{"registry.test": "u"})},
			{Name: "b", Logins: []Login{{"registry.test", "v", "s"}}}},
			"registry.test/image", []string{"a:u", "b:v"}},
		{"a longer path of a later source first", []Source{
			{Name: "a", Config: auths(map[string]string{"registry.test": "u"})},
			{Name: "b", Logins: []Login{{"registry.test/group", "v", "s"}}}},
			"registry.test/group/image", []string{"b:v", "a:u"}},
		{"identity token", []Source{{Name: "a", Config: []byte(`{"auths": {"registry.test": {"identitytoken": "t"}}}`)}},
			"registry.test/image", []string{"a:"}},
		{"empty login", []Source{{Name: "a", Config: []byte(`{"auths": {"registry.test": {}}}`)}},
			"registry.test/image", []string{"a:none"}},
		{"empty source", []Source{{Name: "a"}}, "registry.test/image", nil},
		{"broken source", []Source{{Name: "a", Config: []byte(`{"auths": `)}, {Name: "b", Logins: []Login{{"registry.test", "v", "s"}}}},
			"registry.test/image", []string{"b:v"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := users(t, NewKeychain(tt.sources...), tt.repository); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestKeychainReportsBrokenSourceOnce(t *testing.T) {
	k := NewKeychain(Source{Name: "DOCKER_AUTH_CONFIG", Config: []byte(`{"auths": {"r.test": {"auth": "c2VjcmV0"}}}`)})
	problems := k.takeProblems()
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "DOCKER_AUTH_CONFIG") {
		t.Errorf("problems: %v", problems)
	}
	if strings.Contains(fmt.Sprint(problems), "secret") || strings.Contains(fmt.Sprint(problems), "c2VjcmV0") {
		t.Errorf("problems tell the secret: %v", problems)
	}
	if again := k.takeProblems(); len(again) != 0 {
		t.Errorf("reported again: %v", again)
	}
}

func TestHostSource(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if s, err := HostSource(); err != nil || len(s.Config) != 0 {
		t.Errorf("without a file: %v, %v", s, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), auths(map[string]string{"registry.test": "u"}), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := HostSource()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "config.json") + ":u"}
	if got := users(t, NewKeychain(s), "registry.test/image"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// fakeHelper puts docker-credential-fake on the PATH. It writes what it is asked for to the file that is returned.
func fakeHelper(t *testing.T, answer string) (asked string) {
	t.Helper()
	dir := t.TempDir()
	asked = filepath.Join(dir, "asked")
	script := fmt.Sprintf("#!/bin/sh\necho \"$1 $(cat)\" >>%s\n%s\n", asked, answer)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-fake"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return asked
}

func TestHelper(t *testing.T) {
	const answer = `echo '{"Username": "u", "Secret": "s"}'`
	tests := []struct {
		name       string
		source     Source
		answer     string
		repository string
		want       []string
		asked      string
	}{
		{"for a registry", Source{Config: []byte(`{"credHelpers": {"registry.test": "fake"}}`), AllowedHelpers: []string{"fake"}}, answer,
			"registry.test/image", []string{":u"}, "get registry.test\n"},
		{"for another registry", Source{Config: []byte(`{"credHelpers": {"other.test": "fake"}}`), AllowedHelpers: []string{"fake"}}, answer,
			"registry.test/image", nil, ""},
		{"for all", Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true}, answer,
			"registry.test/image", []string{":u"}, "get registry.test\n"},
		{"for the hub", Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true}, answer,
			"docker.io/library/alpine", []string{":u"}, "get https://index.docker.io/v1/\n"},
		{"before a plain login", Source{Config: []byte(`{"credsStore": "fake", "auths": {"registry.test": {"auth": "` + auth("v", "s") + `"}}}`), AnyHelper: true}, answer,
			"registry.test/image", []string{":u", ":v"}, "get registry.test\n"},
		{"identity token", Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true}, `echo '{"Username": "<token>", "Secret": "s"}'`,
			"registry.test/image", []string{":"}, "get registry.test\n"},
		{"has none", Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true}, `echo "credentials not found in native keychain"; exit 1`,
			"registry.test/image", []string{":none"}, "get registry.test\n"},
		{"fails", Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true}, `exit 3`,
			"registry.test/image", []string{":error"}, "get registry.test\n"},
		{"not allowed", Source{Config: []byte(`{"credsStore": "fake"}`), AllowedHelpers: []string{"other"}}, answer,
			"registry.test/image", []string{":error"}, ""},
		{"path as a name", Source{Config: []byte(`{"credsStore": "../fake"}`), AllowedHelpers: []string{"../fake"}}, answer,
			"registry.test/image", []string{":error"}, ""},
		{"path as a name of the operator", Source{Config: []byte(`{"credHelpers": {"registry.test": "x/../fake"}}`), AnyHelper: true}, answer,
			"registry.test/image", []string{":error"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := fakeHelper(t, tt.answer)
			if got := users(t, NewKeychain(tt.source), tt.repository); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			asked, err := os.ReadFile(file)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if string(asked) != tt.asked {
				t.Errorf("the helper was asked %q, want %q", asked, tt.asked)
			}
		})
	}
}

func TestHelperErrorNamesProfileKey(t *testing.T) {
	k := NewKeychain(Source{Name: "DOCKER_AUTH_CONFIG", Config: []byte(`{"credsStore": "ecr-login"}`)})
	_, _, err := k.match("registry.test/image")[0].get(t.Context(), "registry.test")
	if !errdefs.IsPermissionDenied(err) {
		t.Errorf("error is %v, want permission denied", err)
	}
	for _, part := range []string{"ecr-login", "DOCKER_AUTH_CONFIG", "credential_helpers"} {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
}

func TestHelperEndsWithItsContext(t *testing.T) {
	asked := fakeHelper(t, "sleep 60")
	k := NewKeychain(Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
			if b, _ := os.ReadFile(asked); len(b) > 0 {
				cancel()
			}
		}
	}()
	began := time.Now()
	if _, _, err := k.match("registry.test/image")[0].get(ctx, "registry.test"); err == nil {
		t.Error("no error")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}
