package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
)

var stored = []api.Image{
	{Name: "docker.io/library/golang:1.26", Image: "golang:1.26", Size: 800 << 20, Unique: 300 << 20, Used: time.Now().Add(-3 * time.Hour)},
	{Name: "berth.invalid/p7/protected/docker.io/library/app:1", Image: "app:1", Project: "group/web", Protected: true, Size: 3 << 20, Users: []string{"j1-00000000", "container 0123456789ab"}},
	{Name: "berth.invalid/p9/unprotected/docker.io/library/app:1", Image: "app:1", Project: "group/api", Size: 2 << 20, Used: time.Now().Add(-48 * time.Hour)},
}

func TestPrintImages(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, printImages(&b, stored, false))
	require.Equal(t, `IMAGE        PROJECT    TIER         SIZE    UNIQUE  USED         IN USE BY
golang:1.26  -          -            800MiB  300MiB  3 hours ago  
app:1        group/web  protected    3MiB    0B      never        j1-00000000, container 0123456789ab
app:1        group/api  unprotected  2MiB    0B      2 days ago   
`, b.String())
	b.Reset()
	require.NoError(t, printImages(&b, stored, true))
	require.Equal(t, len(stored), bytes.Count(b.Bytes(), []byte("\n")))
}

func TestMatchImage(t *testing.T) {
	for _, c := range []struct{ name, project, want, err string }{
		{"golang:1.26", "", stored[0].Name, ""},
		{stored[2].Name, "", stored[2].Name, ""},
		{"app:1", "group/api", stored[2].Name, ""},
		{"app:1", "", "", `2 images are called "app:1"`},
		{"app:1", "group/other", "", "no image"},
		{"app", "", "", "no image"},
	} {
		got, err := matchImage(stored, c.name, c.project)
		if c.err != "" {
			require.ErrorContains(t, err, c.err, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got)
	}
}
