package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gitlab.com/berth-ci/berth/test/images"
)

// BenchmarkGitLabRunner is how long a trivial job takes, as GitLab sees it,
// with a real gitlab-runner.
func BenchmarkGitLabRunner(b *testing.B) {
	needBed(b)
	if bed.real == nil {
		b.Skip("GITLAB_RUNNER names no gitlab-runner")
	}
	s := newSamples()
	rounds := rounds(b, bed.real, func(l *lane) error {
		results, err := l.run(b.Context(), bed.jobs(1))
		s.addJobs(l.name, results)
		return err
	})
	s.rows = []string{wholeJob}
	section("A trivial job with a real gitlab-runner, as GitLab sees it: medians of %d rounds", rounds)
	note("As above, but for the pull policy: always, the docker executor's own default.")
	s.lanes("with a real gitlab-runner")
	s.report(b, wholeJob)
}

// openReal opens lanes of a real gitlab-runner.
func (t *testbed) openReal(ctx context.Context, program string) ([]*lane, error) {
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	helper, err := t.pushHelper(ctx, program)
	if err != nil {
		return nil, fmt.Errorf("make helper image: %w", err)
	}
	if err := t.docker.pull(ctx, helper); err != nil {
		return nil, err
	}
	return t.openLanes("real-", program, "always", helper)
}

// pushHelper makes the helper image of the docker executor, which has the
// runner's program under a name of its own and a script that starts a shell.
func (t *testbed) pushHelper(ctx context.Context, program string) (string, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for name, content := range map[string][]byte{
		"usr/bin/gitlab-runner-helper": content,
		"usr/bin/gitlab-runner-build":  []byte("#!/bin/sh\nexec bash\n"),
	} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return "", err
		}
		if _, err := w.Write(content); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	git, err := name.NewTag(t.image(), name.Insecure)
	if err != nil {
		return "", err
	}
	img, err := remote.Image(git, remote.WithContext(ctx))
	if err != nil {
		return "", err
	}
	if img, err = appendLayer(img, layer.Bytes()); err != nil {
		return "", err
	}
	helper, err := name.NewTag(t.registry.Image(images.Git+"-helper"), name.Insecure)
	if err != nil {
		return "", err
	}
	return helper.Name(), remote.Write(helper, img, remote.WithContext(ctx))
}

func appendLayer(img v1.Image, content []byte) (v1.Image, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}
