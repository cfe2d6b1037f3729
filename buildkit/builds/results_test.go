package builds_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What is known of builds goes with those who do not build any more, and not while a job may.
func TestForget(t *testing.T) {
	f := newFixture(t)
	build := func(j *job) {
		_, err := j.build(request{dockerfile: "FROM scratch\nCOPY Dockerfile /"})
		f.must(err)
	}
	for _, ns := range []string{"gone", "young"} {
		j := f.job("job of "+ns, ns)
		build(j)
		j.close()
	}
	living := f.job("job of living", "living")
	build(living)
	long := time.Now().Add(-31 * 24 * time.Hour)
	for _, ns := range []string{"gone", "living"} {
		f.must(os.Chtimes(filepath.Join(f.Config.Root, "builds", "results", ns+".db"), long, long))
	}
	for _, want := range [][]string{{"gone"}, nil} {
		got, err := f.service.Forget(30 * 24 * time.Hour)
		f.must(err)
		if !slices.Equal(got, want) {
			t.Errorf("forgot %v, want %v", got, want)
		}
	}
	build(living)
	build(f.job("another", "gone"))
	// Who builds again is young again.
	f.must(os.Chtimes(filepath.Join(f.Config.Root, "builds", "results", "young.db"), long, long))
	again := f.job("again", "young")
	again.close()
	if got, err := f.service.Forget(30 * 24 * time.Hour); err != nil || len(got) > 0 {
		t.Errorf("forgot %v, %v", got, err)
	}
}
