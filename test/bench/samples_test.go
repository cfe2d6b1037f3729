package bench

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	s := newSamples()
	require.Zero(t, s.median("row", berth))
	for _, ms := range []int{9, 1, 5} {
		s.add("row", berth, time.Duration(ms)*time.Millisecond)
		s.add("row", bare, time.Duration(ms)*time.Millisecond/2)
	}
	require.InDelta(t, 5, s.median("row", berth), 1e-9)
	s.add("row", berth, 100*time.Millisecond)
	require.InDelta(t, 7, s.median("row", berth), 1e-9)
	toBare, toDocker := s.ratios("row")
	require.InDelta(t, 2.8, toBare, 1e-9)
	require.Zero(t, toDocker)
	require.Equal(t, []string{"row"}, s.rows)
}
