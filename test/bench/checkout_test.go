package bench

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/fstest"
	"time"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

// The history that BenchmarkCheckout checks out, whole.
const (
	historyFiles   = 3000
	historyCommits = 3000
	historyChanges = 5 // files that a commit changes
)

// BenchmarkCheckout is what get_sources takes of a large history in a job that
// finds no tree, in the next one with a new commit, and in one at the same.
func BenchmarkCheckout(b *testing.B) {
	needBed(b)
	const path = "group/history"
	project, err := bed.server.AddProject(path, fstest.MapFS{"README": &fstest.MapFile{Data: []byte("A long story.\n")}})
	if err != nil {
		b.Fatal(err)
	}
	h := history{random: rand.NewChaCha8([32]byte{})}
	h.commit(historyFiles)
	for range historyCommits - 1 {
		h.commit(historyChanges)
	}
	if err := project.Import(&h.stream); err != nil {
		b.Fatal(err)
	}
	spec := gitlab.JobSpec{
		Project: project, Name: "checkout", Script: []string{"echo done"},
		Variables: []gitlab.Variable{{Key: "GIT_DEPTH", Value: "0"}},
	}
	const row = "get_sources"
	s, rounds := newSamples(), 0
	run := func(l *lane, column string) {
		results, err := l.run(b.Context(), []gitlab.JobSpec{spec})
		if err != nil {
			b.Fatal(err)
		}
		s.add(row, column, stage(results[0], row))
		s.add(wholeJob, column, results[0].Took)
	}
	columns := []string{"bare, no tree", "no tree", "new commit", "same commit"}
	for ; b.Loop(); rounds++ {
		if err := forget(b.Context(), path); err != nil {
			b.Fatal(err)
		}
		run(bed.lanes[0], columns[0])
		run(bed.lanes[1], columns[1])
		h.commit(historyChanges)
		if err := project.Import(&h.stream); err != nil {
			b.Fatal(err)
		}
		run(bed.lanes[1], columns[2])
		run(bed.lanes[1], columns[3])
	}
	section("Checkout of %d commits and %d files (GIT_DEPTH 0): medians of %d rounds", historyCommits, historyFiles, rounds)
	rows := [][]string{{"ms", columns[0], columns[1], columns[2], columns[3], "no tree/new commit", "no tree/same commit"}}
	for _, row := range s.rows {
		line := []string{row}
		for _, column := range columns {
			line = append(line, number(s.median(row, column), 0))
		}
		first := s.median(row, columns[1])
		rows = append(rows, append(line, number(ratio(first, s.median(row, columns[2])), 1), number(ratio(first, s.median(row, columns[3])), 1)))
	}
	table(rows)
	for _, column := range columns[1:] {
		s.metric(b, row, column)
	}
}

// history makes commits for git fast-import.
type history struct {
	random *rand.ChaCha8
	stream bytes.Buffer
	n      int
}

// commit changes so many files, one after another of all.
func (h *history) commit(files int) {
	const size = 2 << 10
	when := time.Unix(1_700_000_000+int64(h.n), 0).Unix()
	first := h.stream.Len() == 0
	fmt.Fprintf(&h.stream, "commit refs/heads/%s\ncommitter Author <author@example.com> %d +0000\ndata 6\nchange\n", gitlab.DefaultBranch, when)
	if first { // a stream has to say upon what
		fmt.Fprintf(&h.stream, "from refs/heads/%s^0\n", gitlab.DefaultBranch)
	}
	content := make([]byte, size)
	for range files {
		_, _ = h.random.Read(content) // never fails
		name := h.n % historyFiles
		fmt.Fprintf(&h.stream, "M 100644 inline dir%d/file%d\ndata %d\n%s\n", name%50, name, size, content)
		h.n++
	}
	h.stream.WriteByte('\n')
}
