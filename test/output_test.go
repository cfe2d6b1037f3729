package test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

// TestLargeOutput reads 100 MB of numbered lines from one stream and as much
// from the other.
func TestLargeOutput(t *testing.T) {
	s, project := theServer(t)
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	c.expect(t.Context(), 0, "prepare")
	const lines = 100_000
	write := fmt.Sprintf(`awk 'BEGIN { pad = sprintf("%%990s", ""); for (i = 0; i < %d; i++) printf "%%010d%%s\n", i, pad }'`, lines)
	run := c.command(t.Context(), "run", c.script(write+" & "+write+" >&2; wait"), "build_script")
	stdout, err := run.StdoutPipe()
	require.NoError(t, err)
	stderr, err := run.StderrPipe()
	require.NoError(t, err)
	begin := time.Now()
	require.NoError(t, run.Start())
	check := func(r io.Reader, result chan<- error) {
		result <- func() error {
			in := bufio.NewReaderSize(r, 1<<20)
			for i := range lines {
				line, err := in.ReadSlice('\n')
				if err != nil || len(line) != 1001 || string(line[:10]) != fmt.Sprintf("%010d", i) {
					return fmt.Errorf("line %d: %w: %.20q, %d bytes", i, err, line, len(line))
				}
			}
			rest, err := io.ReadAll(in)
			if len(rest) > 0 {
				return fmt.Errorf("%d bytes more than were written", len(rest))
			}
			return err
		}()
	}
	results := make(chan error, 2)
	go check(stdout, results)
	go check(stderr, results)
	for range 2 {
		require.NoError(t, <-results)
	}
	require.NoError(t, run.Wait())
	took := time.Since(begin)
	t.Logf("%.0f MB/s", 2*lines*1001/1e6/took.Seconds())
}

func TestBinaryOutput(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	c := newCaller(t, node, s.Server, gitlab.JobSpec{Project: project, Script: []string{"unused"}})
	c.expect(t.Context(), 0, "prepare")
	var want bytes.Buffer
	script := "printf '"
	for b := range 256 {
		want.WriteByte(byte(b))
		script += fmt.Sprintf(`\%03o`, b)
	}
	out := c.expect(t.Context(), 0, "run", c.script(script+"'"), "build_script")
	require.Equal(t, want.String(), out)
}
