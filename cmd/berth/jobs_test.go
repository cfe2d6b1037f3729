package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Whoever writes the YAML names jobs and refs; the terminal is the operator's.
func TestJobLineIsSafeToPrint(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, jobLine(&out, api.Job{Identity: executor.Identity{ID: 7, Name: "tést\x1b[2J\nrm\tx", Ref: "main\r"}}, ""))
	require.Contains(t, out.String(), "tést\uFFFD[2J\uFFFDrm\uFFFDx\tmain\uFFFD\t")
}
