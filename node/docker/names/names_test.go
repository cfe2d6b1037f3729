package names_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/docker/names"
)

var (
	trusted   = names.Scope{Project: "p1-0123abcd", Protected: true}
	untrusted = names.Scope{Project: "p1-0123abcd"}
	stranger  = names.Scope{Project: "p11-0123abcd", Protected: true}
)

func TestOwn(t *testing.T) {
	for name, stored := range map[string]string{
		"golang:1.26":                     "berth.invalid/p1-0123abcd/protected/docker.io/library/golang:1.26",
		"app":                             "berth.invalid/p1-0123abcd/protected/docker.io/library/app:latest",
		"registry.example.com:5000/a/b:1": "berth.invalid/p1-0123abcd/protected/registry.example.com__5000/a/b:1",
		"localhost/x":                     "berth.invalid/p1-0123abcd/protected/localhost/x:latest",
	} {
		named, err := names.Parse(name)
		require.NoError(t, err)
		own, err := trusted.Own(named)
		require.NoError(t, err)
		require.Equal(t, stored, own)
		back, depth, ok := trusted.Sees(own)
		require.True(t, ok)
		require.Zero(t, depth)
		require.Equal(t, named.String(), back.String())
	}
	for _, name := range []string{"berth.invalid/p2/protected/docker.io/library/app", "UPPER.example.com/app", "[::1]:5000/app", strings.Repeat("a", 240)} {
		named, err := names.Parse(name)
		if err == nil {
			_, err = trusted.Own(named)
		}
		require.Error(t, err, name)
	}
}

func TestSees(t *testing.T) {
	named, err := names.Parse("app:1")
	require.NoError(t, err)
	ofTrusted, err := trusted.Own(named)
	require.NoError(t, err)
	ofUntrusted, err := untrusted.Own(named)
	require.NoError(t, err)

	require.Equal(t, []string{ofTrusted, "docker.io/library/app:1"}, trusted.Candidates(named))
	require.Equal(t, []string{ofUntrusted, ofTrusted, "docker.io/library/app:1"}, untrusted.Candidates(named))

	_, _, ok := trusted.Sees(ofUntrusted)
	require.False(t, ok, "the protected see what others made")
	for _, stored := range []string{ofTrusted, ofUntrusted} {
		_, _, ok = stranger.Sees(stored)
		require.False(t, ok, "another project sees %s", stored)
	}
	require.Equal(t, map[string]string{"docker.io/library/app:1": ofUntrusted},
		untrusted.View([]string{"docker.io/library/app:1", ofTrusted, ofUntrusted}))
	require.Equal(t, map[string]string{"docker.io/library/app:1": ofTrusted},
		trusted.View([]string{"docker.io/library/app:1", ofTrusted, ofUntrusted}))
	require.Equal(t, map[string]string{"docker.io/library/app:1": "docker.io/library/app:1"},
		stranger.View([]string{"docker.io/library/app:1", ofTrusted, ofUntrusted}))
	require.False(t, trusted.Owns(ofUntrusted))
	require.True(t, untrusted.Owns(ofUntrusted))
}

func TestWhose(t *testing.T) {
	for stored, want := range map[string]names.Scope{
		"berth.invalid/p1-0123abcd/protected/docker.io/library/golang:1.26":    trusted,
		"berth.invalid/p1-0123abcd/unprotected/registry.example.com__5000/a:1": untrusted,
	} {
		s, named, ok := names.Whose(stored)
		require.True(t, ok, stored)
		require.Equal(t, want, s)
		again, err := s.Own(named)
		require.NoError(t, err)
		require.Equal(t, stored, again)
	}
	for _, stored := range []string{
		"docker.io/library/golang:1.26", "moby-dangling@sha256:0", "berth.invalid/p1-0123abcd/protected",
		"berth.invalid/p1-0123abcd/other/docker.io/library/golang:1.26", "berth.invalid/p1-0123abcd/protected/docker.io/UPPER:1",
	} {
		_, _, ok := names.Whose(stored)
		require.False(t, ok, stored)
	}
}
