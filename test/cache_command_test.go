package test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/test/gitlab"
)

// berth runs one of the commands for operators.
func berth(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(programs.Berth, append([]string{"--socket", node.Config.Socket}, args...)...).CombinedOutput()
	return string(out), err
}

func mustBerth(t *testing.T, args ...string) string {
	t.Helper()
	out, err := berth(t, args...)
	require.NoError(t, err, out)
	return out
}

// TestCacheCommands looks after a cache as an operator does, between the jobs that use it.
func TestCacheCommands(t *testing.T) {
	s, _ := theServer(t)
	project, err := s.AddProject("group/operated", files)
	require.NoError(t, err)
	t.Parallel()
	run := func(say string) string {
		j := s.enqueue(t, "default", gitlab.JobSpec{
			Project:   project,
			Variables: variables("BERTH_CACHE_1", "id=operated,target=/kept"),
			Script:    []string{"echo \"found <$(cat /kept/file 2>/dev/null)>\"", "echo " + say + " >/kept/file"},
		})
		require.Equal(t, gitlab.Success, end(t, j))
		return j.Log()
	}
	require.Contains(t, run("one"), "found <>")
	inOrder(t, run("two"), "Cache operated: generation 1", "found <one>", "Cache operated: published as generation 2")
	require.Contains(t, run("three"), "found <two>")

	var found []api.Cache
	for line := range strings.Lines(mustBerth(t, "cache", "ls", "--project", "group/operated", "--json")) {
		var c api.Cache
		require.NoError(t, json.Unmarshal([]byte(line), &c))
		found = append(found, c)
	}
	require.Len(t, found, 2, "the working tree and the mount")
	require.Contains(t, mustBerth(t, "cache", "ls"), "group/operated")
	require.Contains(t, mustBerth(t, "cache", "du"), "group/operated")
	require.Contains(t, mustBerth(t, "cache", "show", "snapshot/operated"), "\n3           ")

	require.Contains(t, mustBerth(t, "cache", "rollback", "snapshot/operated"), "jobs get generation 2")
	require.Contains(t, run("four"), "found <two>")
	mustBerth(t, "cache", "rollback", "snapshot/operated", "1")
	require.Contains(t, run("five"), "found <one>")
	mustBerth(t, "cache", "pin", "snapshot/operated")
	mustBerth(t, "cache", "prune", "--all", "--project", "group/operated")
	require.Contains(t, run("six"), "found <five>", "what is pinned stays")
	mustBerth(t, "cache", "unpin", "snapshot/operated")
	mustBerth(t, "cache", "rm", "snapshot/operated")
	require.Contains(t, run("seven"), "found <>")
	require.Contains(t, mustBerth(t, "cache", "prune", "--all", "--project", "group/operated"), "removed generation")
	require.NotContains(t, mustBerth(t, "cache", "ls"), "group/operated")

	keptAtCache(t, s)

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"rm", "snapshot/operated"}, "no cache has"},
		{[]string{"prune"}, "say what to remove"},
		{[]string{"prune", "--keep", "much"}, `--keep "much": expected a size`},
		{[]string{"rollback", "x", "y", "z"}, "accepts between 1 and 2 arg"},
	} {
		out, err := berth(t, append([]string{"cache"}, tt.args...)...)
		require.Error(t, err)
		require.Contains(t, out, tt.want)
	}
}

// keptAtCache looks after what jobs leave at /cache.
func keptAtCache(t *testing.T, s *server) {
	project, err := s.AddProject("group/at-cache", files)
	require.NoError(t, err)
	run := func(say string) string {
		j := s.enqueue(t, "default", gitlab.JobSpec{
			Project: project,
			Script:  []string{"echo \"mode $(stat -c %a /cache), found <$(cat /cache/file 2>/dev/null)>\"", "echo " + say + " >/cache/file"},
		})
		require.Equal(t, gitlab.Success, end(t, j))
		return j.Log()
	}
	require.Contains(t, run("one"), "mode 777, found <>", "for jobs of any user")
	require.Contains(t, run("two"), "found <one>")
	var key string
	for line := range strings.Lines(mustBerth(t, "cache", "ls", "--project", "group/at-cache", "--json")) {
		var c api.Cache
		require.NoError(t, json.Unmarshal([]byte(line), &c))
		if c.Kind == api.CacheDirectories {
			key = c.Key
		}
	}
	require.NotEmpty(t, key)
	// A job is released in the background.
	released := func() {
		t.Helper()
		require.Eventually(t, func() bool { return !strings.Contains(mustBerth(t, "cache", "show", key), "in use") }, time.Minute, 50*time.Millisecond)
	}
	released()
	require.Contains(t, mustBerth(t, "cache", "show", key), "what the project's jobs have at /cache")
	mustBerth(t, "cache", "pin", key)
	mustBerth(t, "cache", "prune", "--all", "--project", "group/at-cache")
	require.Contains(t, run("three"), "found <two>", "what is pinned stays")
	mustBerth(t, "cache", "unpin", key)
	out, err := berth(t, "cache", "rollback", key)
	require.Error(t, err)
	require.Contains(t, out, "no generations")
	released()
	require.Contains(t, mustBerth(t, "cache", "prune", "--all", "--project", "group/at-cache"), "removed directory "+key)
	require.Contains(t, run("four"), "found <>")
	released()
	mustBerth(t, "cache", "rm", key)
	require.Contains(t, run("five"), "found <>")
}
