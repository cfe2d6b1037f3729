package stages

import (
	"os"
	"path/filepath"
	"testing"
	"time"

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

func TestForgetRunners(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	for name, used := range map[string]time.Time{"old": now.Add(-time.Hour), "new": now} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o755))
		require.NoError(t, os.Chtimes(filepath.Join(dir, name), used, used))
	}
	require.NoError(t, forgetRunners(dir, now.Add(-time.Minute)))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "new", left[0].Name())
}
