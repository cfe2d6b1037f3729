package test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

func TestJob(t *testing.T) {
	s, project := theServer(t)
	j := s.enqueue(t, "default", gitlab.JobSpec{Project: project, Script: []string{"cat README", "pwd"}})
	require.Equal(t, gitlab.Success, end(t, j))
	require.Contains(t, j.Log(), "\nread me\n$ pwd\n/builds/group/project\n")
	t.Log(j.Log(), j.Duration())
	require.NoError(t, node.AwaitClean(t.Context()))
}
