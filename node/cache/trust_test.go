package cache

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/executor"
)

var (
	trusted   = executor.Identity{Server: "https://gitlab.example.com", ProjectID: 7, Project: "acme/shop/web", Protected: true}
	untrusted = executor.Identity{Server: "https://gitlab.example.com", ProjectID: 7, Project: "acme/shop/web"}
)

func TestRefusal(t *testing.T) {
	scheduled := trusted
	scheduled.Source = schedule
	rogue := untrusted
	rogue.Source = schedule
	for _, tt := range []struct {
		name         string
		id           executor.Identity
		policy, wish string
		want         string
	}{
		{"never", trusted, "never", "", "by its policy"},
		{"never, forced", trusted, "never", "true", "by its policy"},
		{"protected", trusted, "protected", "", ""},
		{"protected, untrusted", untrusted, "protected", "", "protected refs"},
		{"protected, untrusted, forced", untrusted, "protected", "true", "protected refs"},
		{"protected, not wanted", trusted, "protected", "false", "BERTH_CACHE_PUBLISH is false"},
		{"scheduled, by a push", trusted, "scheduled", "", "scheduled pipelines"},
		{"scheduled, by a push, forced", trusted, "scheduled", "true", ""},
		{"scheduled", scheduled, "scheduled", "", ""},
		{"scheduled on a branch of anybody's", rogue, "scheduled", "true", "protected refs"},
		{"always", untrusted, "always", "", ""},
		{"always, not wanted", untrusted, "always", "false", "BERTH_CACHE_PUBLISH is false"},
	} {
		got := refusal(tt.id, tt.policy, tt.wish)
		if tt.want == "" {
			require.Empty(t, got, tt.name)
		} else {
			require.Contains(t, got, tt.want, tt.name)
		}
	}
}

// A job can only take from what its profile allows; an operator's own cache
// has the policy that he gave it.
func TestPolicyOf(t *testing.T) {
	for _, tt := range []struct {
		profile, cache string
		operator       bool
		want           string
	}{
		{"protected", "", false, "protected"}, {"protected", "always", false, "protected"}, {"protected", "never", false, "never"},
		{"protected", "scheduled", false, "scheduled"}, {"never", "always", false, "never"}, {"always", "protected", false, "protected"},
		{"never", "always", true, "always"}, {"always", "", true, "always"},
	} {
		got := policyOf(executor.CachePolicy{Publish: tt.profile}, spec.Cache{Publish: spec.Publish(tt.cache)}, tt.operator)
		require.Equal(t, tt.want, got, "%+v", tt)
	}
}

func TestNamespaces(t *testing.T) {
	sibling, cousin, elsewhere := trusted, trusted, trusted
	sibling.ProjectID, sibling.Project = 8, "acme/shop/api"
	cousin.ProjectID, cousin.Project = 9, "acme/other"
	elsewhere.Server = "https://other.example.com"
	same := func(scope spec.Scope, a, b executor.Identity) bool {
		return namespace(a, scope, protected) == namespace(b, scope, protected)
	}
	require.False(t, same("", trusted, sibling))
	require.False(t, same("", trusted, elsewhere))
	require.True(t, same(spec.Group, trusted, sibling))
	require.False(t, same(spec.Group, trusted, cousin))
	require.False(t, same(spec.Group, trusted, elsewhere))
	require.True(t, same(spec.Node, trusted, elsewhere))
	require.NotEqual(t, Namespace(trusted), Namespace(untrusted))
	require.Equal(t, trusted.ProjectKey(), Project(Namespace(untrusted)+"/snapshot/a-protected/b"))
	require.Equal(t, "node", Project(namespace(trusted, spec.Node, protected)+"/x"))
}

// What an untrusted job may read includes what trusted ones publish, by
// GitLab's suffixes too; never the other way round.
func TestReadable(t *testing.T) {
	var keys []string
	for _, l := range ownedLines(readable(untrusted, "", "deps-non_protected"), User{1, 2}) {
		keys = append(keys, l.key(kindCache))
	}
	p := untrusted.ProjectKey()
	require.Equal(t, []string{
		p + "-unprotected/cache/1.2/deps-non_protected", p + "-protected/cache/1.2/deps-non_protected", p + "-protected/cache/1.2/deps-protected",
	}, keys)
	for _, name := range []string{"deps-protected", "deps-non_protected", "../" + p + "-unprotected/cache/x"} {
		for _, l := range readable(trusted, "", name) {
			require.True(t, strings.HasPrefix(l.key(kindCache), p+"-protected/cache/"), name)
		}
	}
}

func TestHitVariable(t *testing.T) {
	for id, want := range map[string]string{
		"pip": "PIP", "node_modules": "NODE_MODULES", "a.b/c": "A_B_C",
		"web-${file:web/package-lock.json}": "WEB", "${tree:a}": "", "deps-non_protected": "DEPS", "deps-protected": "DEPS",
	} {
		require.Equal(t, "BERTH_CACHE_HIT_"+want, hitVariable(id), id)
	}
}

func TestPlaceMounts(t *testing.T) {
	request := func(specs ...string) executor.Request {
		r := executor.Request{Sources: executor.Sources{Dir: "g/p", Strategy: "fetch"}}
		for i, s := range specs {
			r.Mounts = append(r.Mounts, executor.CacheMount{Variable: "BERTH_CACHE_" + string(rune('1'+i)), Spec: s})
		}
		return r
	}
	mounts, err := parseMounts(request("id=a,target=/root/.cache", "id=b,target=sub/dir", "id=c,target=/builds/g/p/x"),
		executor.CachePolicy{Mounts: []string{"id=n,target=/opt/n,scope=node"}})
	require.NoError(t, err)
	var places []string
	for _, m := range mounts {
		places = append(places, m.Target+" "+m.Inside)
	}
	require.Equal(t, []string{"/opt/n ", "/root/.cache ", "/builds/g/p/sub/dir sub/dir", "/builds/g/p/x x"}, places)

	for _, tt := range []struct {
		name  string
		specs []string
		want  string
	}{
		{"bad spec", []string{"id=a"}, `BERTH_CACHE_1: cache field "target" is missing`},
		{"scope", []string{"id=a,target=/x,scope=node"}, "a scope is the operator's to give"},
		{"project itself", []string{"id=a,target=/builds/g/p"}, "would take the place of the project's directory"},
		{"above the project", []string{"id=a,target=/builds"}, "would take the place of the project's directory"},
		{"repository", []string{"id=a,target=.git/x"}, "lies in the project's repository"},
		{"reserved", []string{"id=a,target=/proc/x"}, "needs as it is (/proc)"},
		{"agent", []string{"id=a,target=/.berth"}, "needs as it is (/.berth)"},
		{"same target", []string{"id=a,target=/x", "id=b,target=/x/"}, `BERTH_CACHE_1 and BERTH_CACHE_2 have the same target "/x"`},
		{"same id", []string{"id=a,target=/x", "id=a,target=/y"}, `name the same cache "a"`},
	} {
		_, err := parseMounts(request(tt.specs...), executor.CachePolicy{})
		require.ErrorContains(t, err, tt.want, tt.name)
		var failure *executor.BuildFailure
		require.ErrorAs(t, err, &failure, tt.name)
	}
	many := make([]string, maxMounts+1)
	_, err = parseMounts(request(many...), executor.CachePolicy{})
	require.Error(t, err)
}

func TestResolve(t *testing.T) {
	const hash = "0123456789abcdef0123456789abcdef01234567"
	key, err := resolve("a-${tree:src}-${file:go.sum}", map[string]string{"tree:src": hash, "file:go.sum": hash})
	require.NoError(t, err)
	require.Equal(t, "a-"+hash+"-"+hash, key)
	for _, content := range []map[string]string{nil, {"tree:src": "../../evil"}, {"tree:src": ""}} {
		_, err = resolve("a-${tree:src}", content)
		require.ErrorContains(t, err, "tree:src")
	}
}
