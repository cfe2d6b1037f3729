package builds_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// A RUN step and a job have one directory, live.
func TestSharesCaches(t *testing.T) {
	f := newFixture(t)
	j := f.job("job", "p7")
	m, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: cachemount.Key("p7", "gomod"), Job: "job", Sharing: spec.Shared})
	f.must(err)
	f.must(os.WriteFile(filepath.Join(m.Path(), "from-job"), []byte("job's"), 0o644))
	log, err := j.build(request{dockerfile: "FROM " + f.busybox() + `
RUN --mount=type=cache,id=gomod,target=/c cat /c/from-job && echo build > /c/from-build
RUN --mount=type=cache,target=/root/.cache echo default > /root/.cache/f
`})
	f.must(err)
	if !strings.Contains(log, "job's") {
		t.Errorf("the build saw %q", log)
	}
	if text, err := os.ReadFile(filepath.Join(m.Path(), "from-build")); err != nil || string(text) != "build\n" {
		t.Errorf("the job sees %q, %v", text, err)
	}
	f.must(m.Release(t.Context()))
	d, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: cachemount.Key("p7", "/root/.cache"), Job: "job", Sharing: spec.Locked, Limit: time.Minute})
	f.must(err)
	if text, err := os.ReadFile(filepath.Join(d.Path(), "f")); err != nil || string(text) != "default\n" {
		t.Errorf("the cache of a target without id has %q, %v", text, err)
	}
	f.must(d.Release(t.Context()))
}
