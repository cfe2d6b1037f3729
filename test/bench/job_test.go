package bench

import (
	"fmt"
	"strings"
	"testing"

	"gitlab.com/berth-ci/berth/test/runner"
)

// Rows beside those of the executor's calls.
const (
	between  = "runner itself"
	wholeJob = "whole job"
	lastJob  = "last job's end"
)

// BenchmarkJob is the overhead of a trivial job: everything but the script,
// whose one echo takes next to nothing.
func BenchmarkJob(b *testing.B) {
	for _, n := range []int{1, many} {
		b.Run(fmt.Sprintf("jobs=%d", n), func(b *testing.B) {
			needBed(b)
			s := newSamples()
			s.rows = []string{"config", "prepare", "prepare_script", "get_sources", "build_script", "cleanup_file_variables", "cleanup"}
			rounds := rounds(b, bed.lanes, func(l *lane) error {
				results, err := l.run(b.Context(), bed.jobs(n))
				s.addJobs(l.name, results)
				return err
			})
			section("Overhead of a trivial job (checkout of %d files, an echo), %d at once: medians of %d rounds", files, n, rounds)
			note("All fetch everything anew. berth and docker have the images; docker's containers, those for its volumes\n" +
				"/builds and /cache included, are on its default bridge. bare works in an empty directory.")
			s.lanes(fmt.Sprintf("%d at once", n))
			s.report(b, wholeJob)
		})
	}
}

// rounds measures all lanes, again and again, each time in another order.
func rounds(b *testing.B, lanes []*lane, measure func(*lane) error) (n int) {
	b.Helper()
	for ; b.Loop(); n++ {
		for i := range lanes {
			if err := measure(lanes[(n+i)%len(lanes)]); err != nil {
				b.Fatal(err)
			}
		}
	}
	return n
}

// addJobs adds what jobs that ran at once took.
func (s *samples) addJobs(lane string, results []runner.Result) {
	var last runner.Result
	for _, r := range results {
		rest := r.Took
		for _, call := range r.Calls {
			s.add(stageName(call.Name), lane, call.Took)
			rest -= call.Took
		}
		s.add(between, lane, rest)
		s.add(wholeJob, lane, r.Took)
		if r.Took > last.Took {
			last = r
		}
	}
	if len(results) > 1 {
		s.add(lastJob, lane, last.Took)
	}
}

// stageName names a call as the custom executor knows it.
func stageName(call string) string {
	name := strings.TrimPrefix(call, "run ")
	if name == "step_script" {
		return "build_script"
	}
	return name
}

// report reports a row of lanes for benchstat.
func (s *samples) report(b *testing.B, row string) {
	b.Helper()
	for _, lane := range []string{bare, berth, docker} {
		s.metric(b, row, lane)
	}
	toBare, toDocker := s.ratios(row)
	b.ReportMetric(toBare, "berth/bare")
	b.ReportMetric(toDocker, "berth/docker")
}
