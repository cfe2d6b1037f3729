package gitlab

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"strings"
)

var (
	// 2026-11-22T00:00:00.000000Z 01O  at the start of each line; a + says that
	// the line continues the one before of the same stream.
	timestamp = regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [0-9a-f]{2}[OE]([ +])`)
	section   = regexp.MustCompile(`(section_(start|end):\d+:[^\r\n]*\r)?\x1b\[0K`)
	ansi      = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")
)

// plain is a trace as a person reads it, without colours.
func plain(trace []byte) string { return ansi.ReplaceAllString(readable(trace), "") }

// readable returns a trace without timestamps and section markers, with the
// pieces of long lines put together again.
func readable(trace []byte) string {
	var b strings.Builder
	newline := "" // of the line before, which the next may continue
	for line := range strings.Lines(section.ReplaceAllString(string(trace), "")) {
		if m := timestamp.FindStringSubmatch(line); m != nil {
			if m[1] == "+" {
				newline = ""
			}
			line = line[len(m[0]):]
		}
		text, ended := strings.CutSuffix(line, "\n")
		b.WriteString(newline + text)
		newline = ""
		if ended {
			newline = "\n"
		}
	}
	b.WriteString(newline)
	return b.String()
}

// Follow writes the log, with its colours, as it grows and returns the job's
// final state.
func (j *Job) Follow(ctx context.Context, w io.Writer) (State, error) {
	var state State
	for seen := 0; ; {
		var news []byte
		err := j.srv.await(ctx, func() bool {
			state = j.state
			whole := bytes.LastIndexByte(j.trace, '\n') + 1
			if state.Finished() {
				whole = len(j.trace)
			}
			news = j.trace[seen:max(seen, whole)]
			return len(news) > 0 || state.Finished()
		})
		if err != nil || len(news) == 0 {
			return state, err
		}
		seen += len(news)
		if _, err := io.WriteString(w, readable(news)); err != nil {
			return state, err
		}
	}
}
