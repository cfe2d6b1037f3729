package executor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const payload = `{
  "id": 4711, "token": "glcbt-secret", "inputs": {},
  "job_info": {"id": 4711, "name": "unit tests", "stage": "test", "project_id": 7, "project_name": "shop"},
  "git_info": {"repo_url": "https://gitlab-ci-token:glcbt-secret@gitlab.example.com/group/shop.git", "ref": "main", "sha": "abc", "protected": true},
  "variables": [
    {"key": "CI_SERVER_URL", "value": "https://gitlab.example.com"},
    {"key": "CI_PROJECT_PATH", "value": "group/shop"},
    {"key": "CI_COMMIT_REF_PROTECTED", "value": "false"},
    {"key": "CI_SERVER_URL", "value": "https://evil.example.com"},
    {"key": "CI_PROJECT_PATH", "value": "victim/shop"}
  ],
  "image": {"name": "golang:$GO", "pull_policy": ["if-not-present"], "executor_opts": {"docker": {"user": 1000, "platform": "linux/arm64"}}},
  "services": [{"name": "postgres:17", "alias": "db, $MORE", "pull_policy": "never", "variables": [{"key": "A", "value": "b"}]}],
  "credentials": [{"type": "registry", "url": "registry.example.com", "username": "u", "password": "p"}],
  "secrets": {"VAULT_LOGIN": {"vault": {"path": "login"}}}
}`

func TestParsePayload(t *testing.T) {
	p, err := ParsePayload([]byte(payload))
	require.NoError(t, err)
	require.Equal(t, "1000", string(p.Image.ExecutorOptions.Docker.User))
	require.Equal(t, pullPolicies{"if-not-present"}, p.Image.PullPolicies)
	require.Equal(t, pullPolicies{"never"}, p.Services[0].PullPolicies)
	require.True(t, p.Has("CI_PROJECT_PATH"))
	require.True(t, p.Has("VAULT_LOGIN"), "the job chooses the names of its secrets")
	require.False(t, p.Has("DOCKER_AUTH_CONFIG"))
}

// A job can set any variable, so only GitLab's own, which come first, count.
func TestIdentityCannotBeOverridden(t *testing.T) {
	p, err := ParsePayload([]byte(payload))
	require.NoError(t, err)
	id := p.Identity()
	require.Equal(t, "https://gitlab.example.com", id.Server)
	require.Equal(t, "group/shop", id.Project)
	require.True(t, id.Protected, "git_info.protected comes before the variable")

	p.GitInfo.Protected = nil
	p.Variables = append(p.Variables, Variable{Key: "CI_COMMIT_REF_PROTECTED", Value: "true"})
	require.False(t, p.Identity().Protected, "the first CI_COMMIT_REF_PROTECTED counts")
}

func TestKeyTellsServersApart(t *testing.T) {
	a := Identity{Server: "https://a.example.com", ID: 1, ProjectID: 1}
	b := Identity{Server: "https://b.example.com", ID: 1, ProjectID: 1}
	require.NotEqual(t, a.Key(), b.Key())
	require.NotEqual(t, a.ProjectKey(), b.ProjectKey())
	require.Equal(t, a.Key(), a.Key())
	require.Regexp(t, `^j1-[0-9a-f]{8}$`, a.Key())
	protected := a
	protected.Protected = true
	require.NotEqual(t, a.CacheKey(), protected.CacheKey())
}

func TestIdentityWithoutServerVariable(t *testing.T) {
	p := &Payload{ID: 1, GitInfo: GitInfo{RepoURL: "https://gitlab-ci-token:secret@gitlab.example.com:8443/g/p.git"}}
	require.Equal(t, "https://gitlab.example.com:8443", p.Identity().Server)
}

func TestBadPayloads(t *testing.T) {
	for _, tt := range []struct{ name, payload, want string }{
		{"empty", "", "not JSON at byte 0 of 0"},
		{"not JSON", "id=1 token=hush", "not JSON at byte 1"},
		{"cut off", `{"id": 1, "token": "hush`, "not JSON"},
		{"no object", `[1]`, "expected"},
		{"no id", `{"token": "hush"}`, `field "id": expected a positive job id`},
		{"negative id", `{"id": -1, "token": "hush"}`, `field "id"`},
		{"wrong type", `{"id": 1, "variables": "hush"}`, `field "variables": expected []executor.Variable, got string`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParsePayload([]byte(tt.payload))
			require.ErrorContains(t, err, tt.want)
			require.NotContains(t, err.Error(), "hush", "a payload holds secrets")
		})
	}
}

func TestReadPayloadThatIsMissing(t *testing.T) {
	_, err := ReadPayload("")
	require.ErrorContains(t, err, "JOB_RESPONSE_FILE is not set")
	_, err = ReadPayload(filepath.Join(t.TempDir(), "response.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzParsePayload(f *testing.F) {
	f.Add([]byte(payload))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePayload(b)
		if err != nil {
			return
		}
		if key := p.Identity().Key(); strings.ContainsAny(key, "/\x00 ") || key == "" {
			t.Fatalf("key %q is no file name", key)
		}
	})
}
