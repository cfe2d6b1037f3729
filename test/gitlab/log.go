package gitlab

import (
	"regexp"
	"strings"
)

var (
	// 2026-11-22T00:00:00.000000Z 01O  at the start of each line; a + says that
	// the line continues the one before of the same stream.
	timestamp = regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [0-9a-f]{2}[OE]([ +])`)
	section   = regexp.MustCompile(`section_(start|end):\d+:[^\r\n]*\r`)
	ansi      = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")
)

// plain returns a trace without timestamps, section markers and colours, with
// the pieces of long lines put together again.
func plain(trace []byte) string {
	text := section.ReplaceAllString(string(trace), "")
	var b strings.Builder
	for line := range strings.Lines(text) {
		if m := timestamp.FindStringSubmatch(line); m != nil {
			if m[1] == "+" {
				joined := strings.TrimSuffix(b.String(), "\n")
				b.Reset()
				b.WriteString(joined)
			}
			line = line[len(m[0]):]
		}
		b.WriteString(line)
	}
	return ansi.ReplaceAllString(b.String(), "")
}
