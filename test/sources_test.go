package test

import (
	"crypto/md5"
	"encoding/hex"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

func md5sum(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

func TestSources(t *testing.T) {
	s, _ := theServer(t)
	sub, err := s.AddProject("group/deep/sub", fstest.MapFS{"file": {Data: []byte("from below\n")}})
	require.NoError(t, err)
	super, err := s.AddProject("group/super", files)
	require.NoError(t, err)
	require.NoError(t, super.AddSubmodule("below", sub))

	lfs, err := s.AddProject("group/lfs", files)
	require.NoError(t, err)
	pointer, err := lfs.AddLFS([]byte("large content\n"))
	require.NoError(t, err)
	_, err = lfs.Commit(gitlab.DefaultBranch, fstest.MapFS{
		".gitattributes": {Data: []byte("*.bin filter=lfs diff=lfs merge=lfs -text\n")},
		"large.bin":      {Data: pointer},
	})
	require.NoError(t, err)

	odd, err := s.AddProject("grüppe/a project — 計画", files)
	require.NoError(t, err)
	const ref = "it's;\"$(touch${IFS}owned)`id`"
	hostile, err := s.AddProject("group/hostile", files)
	require.NoError(t, err)
	_, err = hostile.Commit(ref, files)
	require.NoError(t, err)

	// Nothing was fetched of it, so there is no tree to be kept.
	untouched, err := s.AddProject("group/untouched", files)
	require.NoError(t, err)

	cases := []jobCase{
		{
			name: "none",
			spec: gitlab.JobSpec{Project: untouched, Variables: variables("GIT_STRATEGY", "none"), Script: []string{"ls -A | wc -l"}},
			says: []string{"Skipping Git repository setup", "\n0\n"},
		},
		{
			name: "empty",
			spec: gitlab.JobSpec{Variables: variables("GIT_STRATEGY", "empty"), Script: []string{"ls -A | wc -l"}},
			says: []string{"\n0\n"},
		},
		{
			name: "no checkout",
			spec: gitlab.JobSpec{Variables: variables("GIT_CHECKOUT", "false"), Script: []string{"ls -A"}},
			says: []string{"\n.git\n"},
		},
		{
			name: "submodules",
			spec: gitlab.JobSpec{Project: super, Variables: variables("GIT_SUBMODULE_STRATEGY", "recursive"), Script: []string{"cat below/file"}},
			says: []string{"Updating/initializing submodules recursively", "\nfrom below\n"},
		},
		{
			name: "LFS",
			spec: gitlab.JobSpec{Project: lfs, Script: []string{"cat large.bin"}},
			says: []string{"\nlarge content\n"},
		},
		{
			name: "LFS as a user",
			spec: gitlab.JobSpec{Project: lfs, Image: gitlab.Image{Name: registry.Image(images.User)}, Script: []string{"cat large.bin"}},
			says: []string{"\nlarge content\n"},
		},
		{
			name: "path with spaces and unicode",
			spec: gitlab.JobSpec{
				Project: odd, Script: []string{"pwd", "cat README", "echo made >made"},
				// No cache: there gitlab-runner's own script trips over spaces.
				Artifacts: []gitlab.Artifact{{Paths: []string{"made"}}},
			},
			says: []string{"\n/builds/grüppe/a project — 計画\n", "\nread me\n", "201 Created"},
		},
		{
			name: "hostile names",
			spec: gitlab.JobSpec{
				Project: hostile, Ref: ref, Name: "a\nb\x1b[31m \"$(touch owned)'; ../..", Stage: "../$(id)",
				Script: []string{"ls"},
			},
			says: []string{"\nREADME\nsrc\n"},
			not:  []string{"owned\n", "uid="},
		},
		{
			name:  "no such commit",
			spec:  gitlab.JobSpec{Script: []string{"echo not reached"}, Edit: func(p *gitlab.Payload) { p.GitInfo.SHA = md5sum("") + "00000000" }},
			fails: true, exitCode: 128,
			says: []string{"get_sources: exit code 128"},
			not:  []string{"\nnot reached\n"},
		},
	}
	for _, strategy := range []string{"fetch", "clone"} {
		cases = append(cases, jobCase{
			name: strategy,
			spec: gitlab.JobSpec{
				Variables: variables("GIT_STRATEGY", strategy), Image: gitlab.Image{Name: registry.Image(images.Git)},
				Script: []string{"cat src/main", "git log --oneline | wc -l", "git status --short | wc -l"},
			},
			says: []string{"\ncontent of main\n", "\n1\n", "\n0\n"},
		})
	}
	runJobs(t, cases)
}
