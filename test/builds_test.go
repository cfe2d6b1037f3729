package test

import (
	"fmt"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/test/containerdtest"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// builder is a profile whose jobs have the clients, and may run what they built.
func builder() executor.Profile {
	p := testnode.Profile(registry)
	dir, err := containerdtest.Programs()
	if err != nil {
		return p // there is no node to run its jobs either
	}
	for _, client := range []string{"buildctl", "docker-buildx"} {
		p.Mounts = append(p.Mounts, filepath.Join(dir, client)+":/usr/local/bin/"+client+":ro")
	}
	return p
}

const (
	buildctl = "buildctl build --progress plain --frontend dockerfile.v0 --local context=. --local dockerfile=. --opt image-resolve-mode=local"
	buildx   = "docker-buildx build --progress plain"
)

// TestBuilds builds in a job by what the job left in a cache, and runs the image in the next.
func TestBuilds(t *testing.T) {
	s, _ := theServer(t)
	t.Parallel()
	base := registry.Image(images.Busybox)
	project, err := s.AddProject("group/builds", fstest.MapFS{"Dockerfile": {Data: []byte(fmt.Sprintf(`FROM %s
RUN --mount=type=cache,id=shared,target=/shared cat /shared/from-job >/found; echo of the build >/shared/from-build
RUN wget -q -O - http://web:8080/ >/greeting
RUN cat /proc/1/cgroup >/cgroup
`, base))}})
	require.NoError(t, err)
	const cache = "id=shared,target=/shared,sharing=shared"
	first := s.enqueue(t, "builder", gitlab.JobSpec{
		Project: project, Variables: variables("BERTH_CACHE_1", cache), Image: gitlab.Image{Name: base},
		Services: []gitlab.Image{{Name: registry.Image(images.Web), Alias: "web", Variables: variables("GREETING", "Ahoy")}},
		Script: []string{
			"echo of the job >/shared/from-job",
			buildctl + " --output type=image,name=berth.test/group/builds:1",
			"cat /shared/from-build",
		},
	})
	require.Equal(t, gitlab.Success, end(t, first))
	inOrder(t, first.Log(), "exporting to image", "\nof the build\n")

	second := s.enqueue(t, "builder", gitlab.JobSpec{
		Project: project, Image: gitlab.Image{Name: "berth.test/group/builds:1", PullPolicies: []string{"never"}},
		Variables: variables("GIT_STRATEGY", "none"),
		Script:    []string{"cat /found /greeting", "cat /cgroup"},
	})
	require.Equal(t, gitlab.Success, end(t, second))
	inOrder(t, second.Log(), "\nof the job\n", "Ahoy")
	require.Contains(t, second.Log(), fmt.Sprintf("/j%d-", first.ID), "RUN steps are in the job's cgroup")

	third := s.enqueue(t, "builder", gitlab.JobSpec{
		Project: project, Image: gitlab.Image{Name: registry.Image(images.User)},
		Services: []gitlab.Image{{Name: registry.Image(images.Web), Alias: "web", Variables: variables("GREETING", "Ahoy")}},
		Script: []string{
			"export HOME=/tmp",
			"docker-buildx create --name node --driver remote $BUILDKIT_HOST --use",
			buildx + " --output type=tar,dest=/tmp/image.tar . ",
			"tar -xOf /tmp/image.tar found",
		},
	})
	require.Equal(t, gitlab.Success, end(t, third))
	inOrder(t, third.Log(), "CACHED", "\nof the job\n")
}

// TestBuildsRefused are those that a profile does not allow.
func TestBuildsRefused(t *testing.T) {
	s, _ := theServer(t)
	project, err := s.AddProject("group/builds-refused", fstest.MapFS{"Dockerfile": {Data: []byte(fmt.Sprintf(
		"FROM %s\nRUN --network=host true\n", registry.Image(images.Busybox)))}})
	require.NoError(t, err)
	runJobs(t, []jobCase{
		{
			name: "network of the host", profile: "builder", spec: gitlab.JobSpec{Project: project, Script: []string{buildctl + " --allow network.host"}},
			fails: true, exitCode: 1, says: []string{"network.host"},
		},
		{
			name: "no builds", profile: "no-builds", spec: gitlab.JobSpec{Project: project, Script: []string{"echo \"host: <$BUILDKIT_HOST>\"; ls /.berth"}},
			says: []string{"host: <>"}, not: []string{"\nrun\n"},
		},
	})
}
