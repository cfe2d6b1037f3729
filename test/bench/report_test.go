package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// Targets for the whole of a job.
const (
	targetBare   = 2.0
	targetDocker = 0.25
)

// report is what is shown when all is done, with the verdicts at its end.
var report, verdicts strings.Builder

// samples are measurements, by row and column of a table.
type samples struct {
	rows   []string
	values map[[2]string][]time.Duration
}

func newSamples() *samples { return &samples{values: map[[2]string][]time.Duration{}} }

// add adds to a cell; rows are shown in the order in which they first come.
func (s *samples) add(row, column string, took time.Duration) {
	if !slices.Contains(s.rows, row) {
		s.rows = append(s.rows, row)
	}
	cell := [2]string{row, column}
	s.values[cell] = append(s.values[cell], took)
}

// median of a cell in milliseconds; 0 where there is nothing.
func (s *samples) median(row, column string) float64 {
	values := slices.Sorted(slices.Values(s.values[[2]string{row, column}]))
	if len(values) == 0 {
		return 0
	}
	middle := (values[(len(values)-1)/2] + values[len(values)/2]) / 2
	return float64(middle) / float64(time.Millisecond)
}

// metric reports a cell for benchstat.
func (s *samples) metric(b *testing.B, row, column string) {
	b.Helper()
	b.ReportMetric(s.median(row, column), strings.ReplaceAll(column, " ", "-")+"-ms")
}

// section starts one of the report.
func section(format string, args ...any) {
	title := fmt.Sprintf(format, args...)
	fmt.Fprintf(&report, "\n%s\n%s\n", title, strings.Repeat("-", len(title)))
}

// note says what to know of a section.
func note(text string) { fmt.Fprintln(&report, text) }

// table writes rows whose cells are aligned at the right, but for the first.
func table(rows [][]string) {
	if len(rows) == 0 {
		return
	}
	wide := 0
	for _, row := range rows {
		wide = max(wide, len(row[0]))
	}
	w := tabwriter.NewWriter(&report, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		fmt.Fprintf(w, "%-*s\t%s\t\n", wide, row[0], strings.Join(row[1:], "\t"))
	}
	_ = w.Flush() // a strings.Builder takes everything
}

func number(v float64, digits int) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// ratios are berth/bare and berth/docker of a row.
func (s *samples) ratios(row string) (toBare, toDocker float64) {
	return ratio(s.median(row, berth), s.median(row, bare)), ratio(s.median(row, berth), s.median(row, docker))
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// lanes writes a table of all rows by lane, with ratios, and judges those of
// the whole job; what tells which jobs.
func (s *samples) lanes(what string) {
	rows := [][]string{{"ms", bare, berth, docker, "berth/bare", "berth/docker"}}
	for _, row := range s.rows {
		toBare, toDocker := s.ratios(row)
		rows = append(rows, []string{
			row, number(s.median(row, bare), 1), number(s.median(row, berth), 1), number(s.median(row, docker), 1),
			number(toBare, 2), number(toDocker, 2),
		})
	}
	rows = append(rows, []string{"target: at most", "", "", "", number(targetBare, 2), number(targetDocker, 2)})
	table(rows)
	toBare, toDocker := s.ratios(wholeJob)
	judge("berth/bare, "+what, toBare, targetBare)
	judge("berth/docker, "+what, toDocker, targetDocker)
	// No isolation at all is the least that could be reached.
	fmt.Fprintf(&verdicts, "%-40s %.2f\n", "  where bare/docker is", ratio(s.median(wholeJob, bare), s.median(wholeJob, docker)))
}

func judge(what string, got, target float64) {
	verdict := "meets"
	if got > target {
		verdict = "MISSES"
	}
	fmt.Fprintf(&verdicts, "%-40s %.2f %s its target of at most %.2f\n", what+":", got, verdict, target)
}
