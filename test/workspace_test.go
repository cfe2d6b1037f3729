package test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// large is content that git cannot make small.
func large(mebibytes int) []byte {
	b := make([]byte, mebibytes<<20)
	_, _ = rand.Read(b) // it never fails
	return b
}

// TestWorkspace fetches only what is new.
func TestWorkspace(t *testing.T) {
	tree := fstest.MapFS{"large": {Data: large(3)}, "small": {Data: []byte("1\n")}}
	p := newProject(t, tree)
	spec := gitlab.JobSpec{Image: image(images.Git), Script: []string{"ls", "cat small; git status --short | wc -l; touch untracked; echo changed >small"}}
	sent := func() int64 { t.Helper(); return p.Sent() }
	p.run(spec, "Working tree: kept for the jobs that come", "\n1\n0\n")
	require.Greater(t, sent(), int64(3<<20))
	before := sent()
	for range 2 {
		log := p.run(spec, "\n1\n0\n")
		require.NotContains(t, log, "Working tree: kept")
		require.NotContains(t, log, "\nuntracked\n")
	}
	require.Less(t, sent()-before, int64(10<<10), "at the same commit")
	tree["small"] = &fstest.MapFile{Data: []byte("2\n")}
	_, err := p.Commit(gitlab.DefaultBranch, tree)
	require.NoError(t, err)
	p.run(spec, "Working tree: kept for the jobs that come", "\n2\n0\n")
	require.Less(t, sent()-before, int64(100<<10), "at the next commit")

	// Each place, user and tier has a tree of its own; the lower tier reads that of the higher.
	before = sent()
	merge := spec
	merge.Protected = no
	p.run(merge, "\n2\n0\n")
	require.Less(t, sent()-before, int64(100<<10), "of a merge request")
	before = sent()
	other := spec
	other.Image = image(images.User)
	other.Script = []string{"cat small; touch small README; id -u"}
	p.run(other, "\n2\n1000\n")
	require.Greater(t, sent()-before, int64(3<<20), "as another user")
}

// TestPipelineFetchesOnce starts 20 jobs at the same commit at once.
func TestPipelineFetchesOnce(t *testing.T) {
	p := newProject(t, fstest.MapFS{"large": {Data: large(2)}})
	runner, err := p.s.start("default", "twenty", 20)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, runner.Stop(context.WithoutCancel(t.Context()))) })
	pipeline := p.s.NewPipeline()
	var jobs []*gitlab.Job
	for i := range 20 {
		j, err := p.s.Enqueue(gitlab.JobSpec{
			Project: p.Project, Pipeline: pipeline, Name: fmt.Sprint(i), Tags: []string{"twenty"}, Image: image(images.Busybox), Script: []string{"wc -c <large"},
		})
		require.NoError(t, err)
		jobs = append(jobs, j)
	}
	waited := 0
	for _, j := range jobs {
		require.Equal(t, gitlab.Success, end(t, j))
		require.Contains(t, j.Log(), fmt.Sprintf("\n%d\n", 2<<20))
		waited += strings.Count(j.Log(), "Waiting for job ")
	}
	t.Logf("%d jobs waited for the one that fetched %d bytes", waited, p.Sent())
	require.Less(t, p.Sent(), int64(3<<20))
}

// TestKeptSubmodulesAndLFS keeps both in the tree.
func TestKeptSubmodulesAndLFS(t *testing.T) {
	p := newProject(t, fstest.MapFS{"README": {Data: []byte("read me\n")}})
	sub, err := p.s.AddProject(p.Path+"-sub", fstest.MapFS{"file": {Data: large(1)}})
	require.NoError(t, err)
	pointer, err := p.AddLFS([]byte("large content\n"))
	require.NoError(t, err)
	_, err = p.Commit(gitlab.DefaultBranch, fstest.MapFS{
		".gitattributes": {Data: []byte("*.bin filter=lfs diff=lfs merge=lfs -text\n")}, "large.bin": {Data: pointer},
	})
	require.NoError(t, err)
	require.NoError(t, p.AddSubmodule("below", sub))
	spec := gitlab.JobSpec{
		Image: image(images.Git), Variables: variables("GIT_SUBMODULE_STRATEGY", "recursive"),
		Script: []string{"cat large.bin; wc -c <below/file; git -C below status --short | wc -l; rm below/file; echo x >below/y"},
	}
	p.run(spec, "\nlarge content\n1048576\n0\n")
	require.Greater(t, sub.Sent(), int64(1<<20))
	before := sub.Sent()
	p.run(spec, "\nlarge content\n1048576\n0\n")
	require.Less(t, sub.Sent()-before, int64(10<<10))
}

// layersOf finds the layers on the node that have a file of some content.
func layersOf(t *testing.T, name, content string) (dirs []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(node.Config.Root, "*", "*snapshotter*overlayfs", "snapshots", "*", "fs", name))
	require.NoError(t, err)
	require.NotEmpty(t, found, "layers with %s", name)
	for _, path := range found {
		if text, err := os.ReadFile(path); err == nil && string(text) == content {
			dirs = append(dirs, strings.TrimSuffix(path, "/"+name))
		}
	}
	return dirs
}

// TestCorruptTree damages what is kept of a project.
func TestCorruptTree(t *testing.T) {
	for name, damage := range map[string]func(git string) error{
		"index": func(git string) error { return os.WriteFile(filepath.Join(git, "index"), []byte("damaged"), 0o644) },
		"objects": func(git string) error {
			return filepath.WalkDir(filepath.Join(git, "objects"), func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				return os.WriteFile(path, []byte("damaged"), 0o644)
			})
		},
		"head": func(git string) error { return os.WriteFile(filepath.Join(git, "HEAD"), []byte("damaged"), 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			mark := rand.Text()
			p := newProject(t, fstest.MapFS{"mark": {Data: []byte(mark)}, "file": {Data: []byte("1\n")}})
			spec := gitlab.JobSpec{Image: image(images.Git), Script: []string{"cat file; git fsck 2>&1 | grep -ci corrupt || true"}}
			p.run(spec, "Working tree: kept")
			layers := layersOf(t, "mark", mark)
			require.Len(t, layers, 1)
			require.NoError(t, damage(filepath.Join(layers[0], ".git")))
			_, err := p.Commit(gitlab.DefaultBranch, fstest.MapFS{"mark": {Data: []byte(mark)}, "file": {Data: []byte("2\n")}})
			require.NoError(t, err)
			log := p.run(spec, "\n2\n0\n")
			next := p.run(spec, "\n2\n0\n")
			require.NotContains(t, next, "tried again")
			if strings.Contains(log, "tried again") {
				require.Contains(t, log, "get_sources failed in the working tree that an earlier job left; it is tried again in a fresh one")
				require.Contains(t, node.Log(), "is damaged: it is withdrawn")
			} else {
				require.Equal(t, "head", name, "git mended it by itself")
			}
		})
	}
}

// TestTokenStaysInJob looks for jobs' tokens in all that is kept of them.
func TestTokenStaysInJob(t *testing.T) {
	mark := rand.Text()
	p := newProject(t, fstest.MapFS{"mark": {Data: []byte(mark)}})
	j := p.start(gitlab.JobSpec{
		Image: image(images.Git), Cache: list("deps"), Variables: variables("BERTH_CACHE_1", "id=m,target=/m", "GIT_DEPTH", "1"),
		Hooks: []gitlab.Hook{{Name: "post_get_sources_script", Script: []string{
			"git config http.extraHeader \"Authorization: $CI_JOB_TOKEN\"; git remote add other \"http://me:$CI_JOB_TOKEN@localhost/x.git\"",
		}}},
		Script: []string{"grep -c \"$CI_JOB_TOKEN\" .git/config", "mkdir deps; echo x | tee deps/f /m/f"},
	})
	require.Equal(t, gitlab.Success, end(t, j))
	require.Contains(t, j.Log(), "\n2\n")
	require.NoError(t, node.AwaitGone(t.Context(), j.ID))
	for _, dir := range layersOf(t, "mark", mark) {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			require.NotContains(t, string(text), j.Token(), path)
			return err
		}))
	}
	require.NotContains(t, node.Log(), j.Token())
	files, err := filepath.Glob(filepath.Join(node.Config.State, "*"))
	require.NoError(t, err)
	for _, file := range append(files, filepath.Join(node.Config.Root, "journal.db")) {
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotContains(t, string(text), j.Token(), file)
	}
}
