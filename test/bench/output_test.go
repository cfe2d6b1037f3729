package bench

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// BenchmarkOutput is how fast the output of a job gets to the runner.
func BenchmarkOutput(b *testing.B) {
	needBed(b)
	const size, block = 100_000_000, 64 << 10
	spec := gitlab.JobSpec{
		Project: bed.projects[0], Name: "loud", Variables: []gitlab.Variable{{Key: "GIT_STRATEGY", Value: "none"}},
		Script: []string{"dd if=/dev/zero bs=" + strconv.Itoa(block) + " count=" + strconv.Itoa(size/block) + " 2>/dev/null"},
	}
	const row = "100 MB of output"
	s := newSamples()
	rounds := rounds(b, bed.lanes, func(l *lane) error {
		results, err := l.run(b.Context(), []gitlab.JobSpec{spec})
		if err == nil {
			s.add(row, l.name, stage(results[0], "build_script"))
		}
		return err
	})
	section("100 MB of job output, from the start of its stage to the end: medians of %d rounds", rounds)
	rows := [][]string{{"", "ms", "MB/s"}}
	for _, lane := range []string{bare, berth, docker} {
		took := s.median(row, lane)
		speed := ratio(size/1e6, took/1000)
		rows = append(rows, []string{lane, number(took, 0), number(speed, 0)})
		b.ReportMetric(speed, lane+"-MB/s")
	}
	table(rows)
}

// stage is how long one stage of a job took.
func stage(r runner.Result, name string) time.Duration {
	i := slices.IndexFunc(r.Calls, func(c runner.Call) bool { return stageName(c.Name) == name })
	if i < 0 {
		return 0
	}
	return r.Calls[i].Took
}
