package programs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLocateGPU(t *testing.T) {
	dir := t.TempDir()
	want := filepath.Join(dir, "berth-gpu")
	require.Equal(t, want, LocateGPU(dir), "what is missing is looked for there")
	require.NoError(t, os.WriteFile(want, nil, 0o755))
	require.Equal(t, want, LocateGPU(dir))
}
