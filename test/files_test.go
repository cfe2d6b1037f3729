package test

import (
	"archive/zip"
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/pipeline"
)

func TestArtifacts(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	first := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project,
		Script:  []string{"mkdir out; echo content >out/a; echo no >out/b; printf '#!/bin/sh\necho it runs\n' >out/program; chmod 755 out/program"},
		Artifacts: []gitlab.Artifact{
			{Name: "out", Paths: []string{"out/"}, Exclude: []string{"out/b"}},
			{Type: "junit", Format: "gzip", Paths: []string{"README"}, When: "always"},
		},
	})
	second := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project, Dependencies: []*gitlab.Job{first}, Image: gitlab.Image{Name: registry.Image(images.NumericUser)},
		Script: []string{"cat out/a", "out/program", "test ! -e out/b && echo no b", "echo more >>out/a"},
	})
	require.Equal(t, gitlab.Success, end(t, first))
	archive, err := first.Artifact("archive")
	require.NoError(t, err)
	content, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	require.NoError(t, err)
	var names []string
	for _, f := range content.File {
		names = append(names, f.Name)
	}
	require.ElementsMatch(t, []string{"out/", "out/a", "out/program"}, names)
	_, err = first.Artifact("junit")
	require.NoError(t, err)
	require.Equal(t, gitlab.Success, end(t, second))
	inOrder(t, second.Log(), "Downloading artifacts for ", "\ncontent\n", "\nit runs\n", "\nno b\n")
}

func TestArtifactsOfFailedJob(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	j := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project, Script: []string{"echo half >report", "false"},
		Artifacts: []gitlab.Artifact{{Paths: []string{"report"}, When: "on_failure"}, {Type: "metadata", Paths: []string{"README"}}},
		Cache:     []gitlab.Cache{{Key: "failed", Paths: []string{"report"}, When: "always"}},
	})
	require.Equal(t, gitlab.Failed, end(t, j))
	_, err := j.Artifact("archive")
	require.NoError(t, err)
	_, err = j.Artifact("metadata")
	require.ErrorIs(t, err, gitlab.ErrNoArtifact)
	inOrder(t, j.Log(), "Saving cache for failed job", "Cache failed-protected: published as generation 1", "Uploading artifacts for failed job")
}

// TestCache passes a cache from job to job, whoever runs them, by berthd and by the runner's own script.
func TestCache(t *testing.T) {
	for _, c := range []struct {
		name, native        string
		cold, warm, changed string
	}{
		{"native", "true", "empty, since nothing was saved of it yet", "Cache main deps-protected: generation ", "Cache main deps-protected: published as generation "},
		{"script", "false", "Checking cache for ", "Successfully extracted cache", "Created cache"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := theServer(t)
			project, err := s.AddProject("group/cache-"+c.name, files)
			require.NoError(t, err)
			t.Parallel()
			spec := gitlab.JobSpec{
				Project:   project,
				Variables: variables("BERTH_CACHE_NATIVE", c.native),
				Cache:     []gitlab.Cache{{Key: "$CI_COMMIT_REF_SLUG deps", Paths: []string{"deps/"}, FallbackKeys: []string{"other"}}},
				Script: []string{
					"cat deps/* 2>/dev/null || echo cold",
					"mkdir -p deps/private; chmod 700 deps/private; id -u >deps/private/$CI_JOB_ID",
					"id -u >>deps/users; cat deps/users | tr '\\n' ' '",
				},
			}
			var users string
			for i, as := range []struct{ image, user string }{
				{images.Busybox, "0"}, {images.User, "1000"}, {images.NumericUser, "1234"}, {images.Git, "0"}, {images.User, "1000"},
			} {
				spec.Name = as.image
				spec.Image.Name = registry.Image(as.image)
				j := s.enqueue(t, "default", spec)
				require.Equal(t, gitlab.Success, end(t, j))
				users += as.user + " "
				if i == 0 {
					inOrder(t, j.Log(), c.cold, "\ncold\n", users, c.changed)
				} else {
					inOrder(t, j.Log(), c.warm, users, c.changed)
				}
			}
			pull := spec
			pull.Cache = []gitlab.Cache{{Key: "$CI_COMMIT_REF_SLUG deps", Paths: []string{"deps/"}, Policy: "pull"}}
			pull.Script = []string{"cat deps/users | tr '\\n' ' '; rm -r deps; mkdir deps; echo nothing >deps/users"}
			for range 2 {
				j := s.enqueue(t, "default", pull)
				require.Equal(t, gitlab.Success, end(t, j))
				require.Contains(t, j.Log(), users)
			}
			other, err := s.AddProject("group/other-"+c.name, files)
			require.NoError(t, err)
			spec.Project, spec.Image.Name = other, ""
			j := s.enqueue(t, "default", spec)
			require.Equal(t, gitlab.Success, end(t, j))
			require.Contains(t, j.Log(), "\ncold\n", "caches of another project")
		})
	}
}

// TestPipeline runs the example of the demo.
func TestPipeline(t *testing.T) {
	needNode(t)
	t.Parallel()
	s, err := newServer(node) // its jobs have no tags, so any runner takes them
	require.NoError(t, err)
	t.Cleanup(s.stop)
	project, err := s.AddProject("harbour/logbook", pipeline.Files)
	require.NoError(t, err)
	project.SetVariables(
		gitlab.Variable{Key: "IMAGES", Value: registry.Address + "/test", Public: true},
		gitlab.Variable{Key: "DEPLOY_KEY", Value: "key\n", File: true})
	text, err := pipeline.Files.ReadFile(pipeline.File)
	require.NoError(t, err)
	parsed, err := gitlab.ParsePipeline(text)
	require.NoError(t, err)
	_, err = s.runner("default")
	require.NoError(t, err)
	jobs, err := s.EnqueuePipeline(project, gitlab.DefaultBranch, parsed)
	require.NoError(t, err)
	for _, j := range jobs {
		require.Equal(t, gitlab.Success, end(t, j))
	}
	require.Contains(t, jobs[0].Log(), "3 pages rendered, 0 from the cache")
	require.Contains(t, jobs[1].Log(), `says "Ahoy from harbour/logbook"`)
	require.Contains(t, jobs[2].Log(), "0 pages rendered, 3 from the cache")
	require.Contains(t, jobs[3].Log(), "ended with success; published on 20")
}
