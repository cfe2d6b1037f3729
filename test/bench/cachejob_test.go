package bench

import (
	"strings"
	"testing"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

// BenchmarkCachedJob is what `cache:` costs a whole job, and which of its
// stages: 50 MB in 1,000 files that cannot be compressed.
func BenchmarkCachedJob(b *testing.B) {
	const write = "head -c 51200 /dev/urandom >deps/$i; done"
	const fill = "test -d deps || { mkdir deps && for i in $(seq 1000); do " + write + "; }"
	for _, kind := range []struct {
		name, what string
		cache      bool
		script     []string
	}{
		{"none", "without a cache", false, []string{"echo done"}},
		{"unchanged", "with a cache that it does not change", true, []string{fill}},
		{"changed", "with a cache of which it changes 1%", true, []string{
			fill, "for i in $(seq 100 100 1000); do " + write,
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			needBed(b)
			spec := gitlab.JobSpec{Project: bed.projects[0], Name: "cached", Script: kind.script}
			if kind.cache {
				spec.Cache = []gitlab.Cache{{Key: kind.name, Paths: []string{"deps/"}}}
			}
			for _, l := range bed.lanes { // the first fills it
				if _, err := l.run(b.Context(), []gitlab.JobSpec{spec}); err != nil {
					b.Fatal(err)
				}
			}
			s := newSamples()
			s.rows = []string{"prepare", "get_sources"}
			if kind.cache {
				s.rows = append(s.rows, "restore_cache")
			}
			s.rows = append(s.rows, "build_script")
			if kind.cache {
				s.rows = append(s.rows, "archive_cache")
			}
			s.rows = append(s.rows, "cleanup_file_variables", "cleanup")
			rounds := rounds(b, bed.lanes, func(l *lane) error {
				results, err := l.run(b.Context(), []gitlab.JobSpec{spec})
				s.addJobs(l.name, results)
				return err
			})
			section("A job %s: medians of %d rounds", kind.what, rounds)
			if kind.cache {
				note("50 MB in 1,000 files, incompressible. Berth restores in get_sources, and keeps the tree; bare starts without one.")
			}
			s.lanes(strings.TrimSpace(kind.what))
			s.report(b, wholeJob)
		})
	}
}
