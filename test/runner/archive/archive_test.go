package archive_test

import (
	"archive/zip"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/runner/archive"
)

func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a/b/c.txt", "a/b/d.bin", "a/e.txt", "f g.txt", "exec"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	require.NoError(t, os.Chmod(filepath.Join(dir, "exec"), 0o750))
	require.NoError(t, os.Symlink("a/e.txt", filepath.Join(dir, "link")))
	return dir
}

func TestFiles(t *testing.T) {
	dir := tree(t)
	for name, tc := range map[string]struct {
		paths, exclude, want []string
	}{
		"directory":   {[]string{"a/"}, nil, []string{"a", "a/b", "a/b/c.txt", "a/b/d.bin", "a/e.txt"}},
		"double star": {[]string{"**/*.txt"}, nil, []string{"a/b/c.txt", "a/e.txt", "f g.txt"}},
		"excluded":    {[]string{"a/b"}, []string{"**/*.bin"}, []string{"a/b", "a/b/c.txt"}},
		"absolute":    {[]string{filepath.Join(dir, "exec")}, nil, []string{"exec"}},
		"braces":      {[]string{"{exec,link}"}, nil, []string{"exec", "link"}},
		"outside":     {[]string{"../", "/etc/passwd"}, nil, []string{}},
		"nothing":     {[]string{"missing"}, nil, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := archive.Selection{Paths: tc.paths, Exclude: tc.exclude, Say: t.Logf}.Files(dir)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestRoundTrip(t *testing.T) {
	dir, to := tree(t), t.TempDir()
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "exec"), old, old))
	files, err := archive.Selection{Paths: []string{"*"}, Say: t.Logf}.Files(dir)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "cache.zip")
	f, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, archive.Zip(f, dir, files))
	require.NoError(t, f.Close())
	for range 2 { // over what the first left
		require.NoError(t, archive.Unzip(file, to))
	}
	content, err := os.ReadFile(filepath.Join(to, "a/b/c.txt"))
	require.NoError(t, err)
	require.Equal(t, "a/b/c.txt", string(content))
	info, err := os.Stat(filepath.Join(to, "exec"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o750), info.Mode().Perm())
	require.True(t, old.Equal(info.ModTime()), "%v is not %v", info.ModTime(), old)
	target, err := os.Readlink(filepath.Join(to, "link"))
	require.NoError(t, err)
	require.Equal(t, "a/e.txt", target)
}

func TestUnzipStaysInside(t *testing.T) {
	outside := t.TempDir()
	for name, entries := range map[string]map[string]fs.FileMode{
		"name":    {"../escaped": 0o644},
		"symlink": {"door": fs.ModeSymlink | 0o777, "door/escaped": 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "evil.zip")
			f, err := os.Create(file)
			require.NoError(t, err)
			w := zip.NewWriter(f)
			for _, entry := range []string{"../escaped", "door", "door/escaped"} {
				mode, ok := entries[entry]
				if !ok {
					continue
				}
				header := &zip.FileHeader{Name: entry}
				header.SetMode(mode)
				part, err := w.CreateHeader(header)
				require.NoError(t, err)
				_, err = part.Write([]byte(outside))
				require.NoError(t, err)
			}
			require.NoError(t, w.Close())
			require.NoError(t, f.Close())
			require.Error(t, archive.Unzip(file, t.TempDir()))
			require.NoFileExists(t, filepath.Join(outside, "escaped"))
		})
	}
}
