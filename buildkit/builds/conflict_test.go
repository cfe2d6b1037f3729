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

// BuildKit hands an empty directory to who asks for a cache in another way than who has it. Here it is an error.
func TestOneMode(t *testing.T) {
	f := newFixture(t)
	j, other := f.job("job", "p1"), f.job("other", "p1")
	key := cachemount.Key("p1", "x")
	step := func(sharing, script string) request {
		return request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c,sharing=" + sharing + " " + script, attrs: map[string]string{"no-cache": ""}}
	}
	one := func() {
		t.Helper()
		list, err := f.Mounts().List(t.Context())
		f.must(err)
		if len(list) != 1 {
			t.Errorf("the cache is forked: %+v", list)
		}
	}
	for _, held := range []spec.Sharing{spec.Shared, spec.Locked} {
		m, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: key, Job: "holder", Sharing: held})
		f.must(err)
		for _, asked := range []spec.Sharing{spec.Shared, spec.Locked, spec.Private} {
			if asked == held {
				continue
			}
			_, err := j.build(step(string(asked), "true"))
			if err == nil || !strings.Contains(err.Error(), "is asked for as "+string(asked)+", and is "+string(held)+" to holder") {
				t.Errorf("%s while it is %s: %v", asked, held, err)
			}
		}
		one()
		f.must(m.Release(t.Context()))
	}
	m, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: key, Job: "itself", Sharing: spec.Locked})
	f.must(err)
	_, err = f.job("key", "p1", func(j *jobSpec) { j.Name = "itself" }).build(step("locked", "true"))
	if err == nil || !strings.Contains(err.Error(), "is locked by this job itself") {
		t.Errorf("a lock of the job's own: %v", err)
	}
	f.must(m.Release(t.Context()))
	// Of builds among themselves.
	ended := make(chan error, 1)
	go func() {
		_, err := other.build(step("locked", "touch /c/ready; while [ -e /c/ready ]; do sleep 0.1; done"))
		ended <- err
	}()
	var dir string
	f.waitFor("the other's step", func() bool {
		dir = f.cacheDir(key, "ready")
		return dir != ""
	})
	_, err = j.build(step("shared", "true"))
	if err == nil || !strings.Contains(err.Error(), "another build has it as locked or private") {
		t.Errorf("shared while a build has it locked: %v", err)
	}
	one()
	// One after another is what locked is for.
	waits := make(chan error, 1)
	go func() {
		_, err := j.build(step("locked", "[ ! -e /c/ready ]"))
		waits <- err
	}()
	select {
	case err := <-waits:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	f.must(os.Remove(filepath.Join(dir, "ready")))
	f.check(<-ended)
	f.check(<-waits)
	one()
}

// cacheDir is the directory of a cache that has a file.
func (f *fixture) cacheDir(key, file string) string {
	f.Helper()
	list, err := f.Mounts().List(f.Context())
	f.must(err)
	for _, u := range list {
		if u.Key != key {
			continue
		}
		mounts, err := f.Unguarded().Snapshotter.Mounts(f.Context(), u.ID)
		f.must(err)
		m, release, err := mounts.Mount()
		f.must(err)
		dir := m[0].Source
		f.must(release())
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return dir
		}
	}
	return ""
}
