package bench

import (
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// crowd is how many jobs have one cache at once.
const crowd = 20

// BenchmarkCacheCrowd is what restoring and saving one cache takes a job that is
// alone, and each of many at once.
func BenchmarkCacheCrowd(b *testing.B) {
	needBed(b)
	c := newCached(b)
	j := c.begin()
	j.checkout()
	writeFiles(b, j.deps(), 1000, 10<<10, 1)
	j.save()
	j.release()
	const restore, save, alone = "restore", "save, one file changed", "alone"
	s, rounds, waited := newSamples(), 0, 0
	for ; b.Loop(); rounds++ {
		for _, jobs := range [][]*cachedJob{c.many(1), c.many(crowd)} {
			column := alone
			if len(jobs) > 1 {
				column = "each of many"
			}
			s.addAll(restore, column, jobs, (*cachedJob).checkout)
			for i, j := range jobs {
				writeFiles(b, filepath.Join(j.deps(), "own"), i+1, 1<<10, i+1)
			}
			s.addAll(save, column, jobs, (*cachedJob).save)
			for _, j := range jobs {
				waited += j.waited
				j.release()
			}
		}
	}
	section("One cache of 1,000 files, %d jobs at once on it: medians of %d rounds", crowd, rounds)
	rows := [][]string{{"ms", alone, "each of many", "the last of them", "many/alone", "jobs that waited for others"}}
	for _, row := range []string{restore, save} {
		one, each := s.median(row, alone), s.median(row, "each of many")
		rows = append(rows, []string{
			row, mark(one, targetRestore), number(each, 1), number(s.median(row, "last of many"), 1), number(ratio(each, one), 1),
			strconv.Itoa(waited),
		})
		for _, column := range []string{alone, "each of many"} {
			b.ReportMetric(s.median(row, column), strings.ReplaceAll(strings.Split(row, ",")[0]+"-"+column, " ", "-")+"-ms")
		}
	}
	table(rows)
	judge("jobs that waited for others on one cache", float64(waited), 0)
}

func (c *cached) many(n int) []*cachedJob {
	jobs := make([]*cachedJob, n)
	for i := range jobs {
		jobs[i] = c.begin()
	}
	return jobs
}

// addAll has all jobs do something at once.
func (s *samples) addAll(row, column string, jobs []*cachedJob, do func(*cachedJob) time.Duration) {
	times := make([]time.Duration, len(jobs))
	var done sync.WaitGroup
	for i, j := range jobs {
		done.Go(func() { times[i] = do(j) })
	}
	done.Wait()
	var last time.Duration
	for _, took := range times {
		s.add(row, column, took)
		last = max(last, took)
	}
	if len(jobs) > 1 {
		s.add(row, "last of many", last)
	}
}
