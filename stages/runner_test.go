package stages

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAbandoned(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	require.False(t, abandoned(w))
	require.NoError(t, r.Close())
	require.True(t, abandoned(w))

	file, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	defer file.Close()
	require.False(t, abandoned(file), "a call made by hand")
}
