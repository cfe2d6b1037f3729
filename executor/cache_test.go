package executor

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func cachesOf(t *testing.T, payload string, variables map[string]string) Request {
	t.Helper()
	p, err := ParsePayload([]byte(payload))
	require.NoError(t, err)
	env := map[string]string{}
	for key, value := range variables {
		env["CUSTOM_ENV_"+key] = value
	}
	return NewRequest(call(env), p)
}

func TestCaches(t *testing.T) {
	const head = `{"id": 1, "job_info": {"name": "unit tests"}, "git_info": {"ref": "main"}, "cache": [`
	for _, tt := range []struct {
		name, entry string
		variables   map[string]string
		want        []Cache
	}{
		{"as written", `{"key": "deps-protected", "paths": ["node_modules/"], "policy": "pull-push", "when": "on_success", "fallback_keys": ["a", "b", "a"]}`, nil,
			[]Cache{{Key: "deps-protected", Paths: []string{"node_modules/"}, Policy: "pull-push", When: "on_success", FallbackKeys: []string{"a", "b"}}}},
		{"no key", `{"paths": ["x"]}`, nil, []Cache{{Key: "unit tests/main", Paths: []string{"x"}}}},
		{"no files", `{"key": "k"}`, nil, nil},
		{"untracked", `{"key": "k", "untracked": true}`, nil, []Cache{{Key: "k", Untracked: true}}},
		{"variables", `{"key": "$A/${B}-${tree:src}", "paths": ["$A/x"], "policy": "$P"}`,
			map[string]string{"A": "a", "B": "b", "P": "pull"}, []Cache{{Key: "a/b-${tree:src}", Paths: []string{"a/x"}, Policy: "pull"}}},
		{"key that leads out", `{"key": "../../%2e%2e/x/", "paths": ["x"]}`, nil, []Cache{{Key: "x", Paths: []string{"x"}}}},
		{"key that is none", `{"key": "..", "paths": ["x"]}`, nil, []Cache{{Paths: []string{"x"}, Script: `cache key ".." could not be sanitized`}}},
		{"global fallback", `{"key": "k", "paths": ["x"], "fallback_keys": ["a"]}`, map[string]string{"CACHE_FALLBACK_KEY": "g"},
			[]Cache{{Key: "k", Paths: []string{"x"}, FallbackKeys: []string{"a", "g"}}}},
		{"global fallback to the protected", `{"key": "k", "paths": ["x"]}`, map[string]string{"CACHE_FALLBACK_KEY": "g-protected. "},
			[]Cache{{Key: "k", Paths: []string{"x"}}}},
		{"a shell's expression", `{"key": "k", "paths": ["${X:-y}"]}`, nil,
			[]Cache{{Key: "k", Paths: []string{""}, Script: `its path "${X:-y}" is an expression of the shell`}}},
		{"policy that is none", `{"key": "k", "paths": ["x"], "policy": "sometimes"}`, nil,
			[]Cache{{Key: "k", Paths: []string{"x"}, Policy: "sometimes", Script: `its policy "sometimes" is none`}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, cachesOf(t, head+tt.entry+"]}", tt.variables).Caches)
		})
	}
}

func TestUnusualPaths(t *testing.T) {
	for path, want := range map[string]bool{
		"node_modules/": false, "$X/y": false, "${X}/y": false, "**/*.jar": false, "{a,b}/c": false, "a b": false,
		"${X:-y}": true, "${X%z}": true, "$(id)": true, "`id`": true, `a\ b`: true, "'a'": true, `"$X"`: true,
	} {
		require.Equal(t, want, unusual.MatchString(path), path)
	}
}

func TestPushes(t *testing.T) {
	for _, tt := range []struct {
		policy, when     string
		success, failure bool
	}{
		{"", "", true, false}, {"pull-push", "on_success", true, false}, {"push", "on_failure", false, true},
		{"push", "always", true, true}, {"pull", "always", false, false},
	} {
		c := Cache{Policy: tt.policy, When: tt.when}
		require.Equal(t, tt.success, c.Pushes(true), "%+v", c)
		require.Equal(t, tt.failure, c.Pushes(false), "%+v", c)
		require.Equal(t, tt.policy != "push", c.Pulls(), "%+v", c)
	}
}

// gitlab-runner drops ${tree:…} from the environment, so the payload's text
// counts; what only the runner's own configuration sets is there alone.
func TestCacheMounts(t *testing.T) {
	r := cachesOf(t, `{"id": 1, "variables": [
		{"key": "BERTH_CACHE_2", "value": "overridden"},
		{"key": "BERTH_CACHE_2", "value": "id=$NAME-${tree:src},target=x"},
		{"key": "BERTH_CACHE_9", "value": " "}
	]}`, map[string]string{
		"BERTH_CACHE_2": "id=go-,target=x", "BERTH_CACHE_10": "id=b,target=y", "BERTH_CACHE_9": " ",
		"BERTH_CACHE_NATIVE": "false", "BERTH_CACHE_HIT_X": "hit", "BERTH_CACHE_-1": "id=c,target=z", "NAME": "go",
	})
	require.Equal(t, []CacheMount{
		{"BERTH_CACHE_2", 2, "id=go-${tree:src},target=x"}, {"BERTH_CACHE_10", 10, "id=b,target=y"},
	}, r.Mounts)
}

func TestSources(t *testing.T) {
	for _, tt := range []struct {
		dir, strategy string
		want          Sources
		keeps         bool
	}{
		{"/builds/group/project", "", Sources{"group/project", "fetch"}, true},
		{"/builds/group/project", "clone", Sources{"group/project", "clone"}, false},
		{"/builds/group/project", "none", Sources{"group/project", "none"}, true},
		{"/builds", "fetch", Sources{"", "fetch"}, false},
		{"/builds/../etc", "fetch", Sources{"", "fetch"}, false},
		{"/builds/a//b", "fetch", Sources{"", "fetch"}, false},
		{"/etc", "fetch", Sources{"", "fetch"}, false},
	} {
		got := cachesOf(t, `{"id": 1}`, map[string]string{"CI_PROJECT_DIR": tt.dir, "GIT_STRATEGY": tt.strategy}).Sources
		require.Equal(t, tt.want, got, tt.dir)
		require.Equal(t, tt.keeps, got.Keeps(), tt.dir)
	}
}
