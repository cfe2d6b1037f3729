package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
)

var kept = []api.Cache{
	{Key: "p7-protected/cache/0.0/deps", Kind: api.CacheGenerations, Project: "group/web", Size: 3 << 20, Used: time.Now().Add(-3 * time.Hour), Held: true,
		Generations: []api.Generation{
			{Number: 1, Job: "j1-00000000", Created: time.Now().Add(-48 * time.Hour), Size: 2 << 20, Layers: 1},
			{Number: 2, Job: "j2-00000000", Created: time.Now().Add(-3 * time.Hour), Size: 3 << 20, Layers: 2, Pinned: true, Note: "abc\x1b[31m"},
			{Number: 3, Job: "j3-00000000", Created: time.Now().Add(-2 * time.Hour), Size: 3 << 20, Layers: 3, Withdrawn: true},
		}},
	{Key: "p7-protected/gomod", Kind: api.CacheMounts, ID: "x", Project: "group/web", Size: 1 << 20, Pinned: true, Holders: []string{"j4-00000000"}},
	{Key: "p9-protected/cache/0.0/deps", Kind: api.CacheGenerations, Project: "group/api", Size: 5 << 20, Used: time.Now()},
	{Key: "p9-protected/directory:/cache", Kind: api.CacheDirectories, Project: "group/api", Size: 2 << 20, Used: time.Now()},
	{Key: "RUN make deps", Kind: api.CacheBuilds, ID: "y", Project: "(builds)", Size: 7 << 20},
}

func TestPrintCaches(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, printCaches(&b, kept[:2], false))
	require.Equal(t, `PROJECT    KEY                          KIND        SIZE  USED         GENERATION  STATE
group/web  p7-protected/cache/0.0/deps  generation  3MiB  3 hours ago  2           in use
group/web  p7-protected/gomod           mount       1MiB  never                    pinned
`, b.String())
	b.Reset()
	require.NoError(t, printCaches(&b, kept, true))
	require.Equal(t, len(kept), bytes.Count(b.Bytes(), []byte("\n")))
}

func TestPrintUsage(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, printUsage(&b, kept, false))
	require.Contains(t, b.String(), "(builds)   1       7MiB   7MiB")
	require.Contains(t, b.String(), "group/web  2       4MiB   0B         3 hours ago")
	require.Contains(t, b.String(), "total      5       18MiB  14MiB")
}

func TestMatchCache(t *testing.T) {
	for _, tt := range []struct{ key, want, err string }{
		{"p7-protected/gomod", "p7-protected/gomod", ""},
		{"gomod", "p7-protected/gomod", ""},
		{"p9-protected/cache", "p9-protected/cache/0.0/deps", ""},
		{":/cache", "p9-protected/directory:/cache", ""},
		{"deps", "", `2 caches have "deps" in their keys`},
		{"nothing", "", `no cache has "nothing" in its key`},
		{"RUN make", "", "no cache has"},
	} {
		list, err := matchCache(kept, tt.key)
		if tt.err != "" {
			require.ErrorContains(t, err, tt.err, tt.key)
			continue
		}
		require.NoError(t, err, tt.key)
		require.Len(t, list, 1)
		require.Equal(t, tt.want, list[0].Key)
	}
}

func TestShowCaches(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, showCaches(&b, kept[:4]))
	for _, want := range []string{
		"key      p7-protected/cache/0.0/deps\n", "3           2 hours ago  j3-00000000  3MiB  3       withdrawn",
		"2           3 hours ago  j2-00000000  3MiB  2       pinned     abc", "in use   by j4-00000000\n",
		"kind     generation: each job", "kind     mount: a directory that jobs and", "kind     directory: what the project's jobs have at /cache\n",
	} {
		require.Contains(t, b.String(), want)
	}
	require.NotContains(t, b.String(), "\x1b", "jobs choose notes")
}
