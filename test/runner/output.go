package runner

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

const (
	ansiReset  = "\x1b[0;m"
	ansiClear  = "\x1b[0K"
	ansiCyan   = "\x1b[36;1m"
	ansiGreen  = "\x1b[32;1m"
	ansiRed    = "\x1b[31;1m"
	ansiYellow = "\x1b[0;33m"
)

// output is a job's log. It replaces masked values, up to a limit of bytes.
type output struct {
	mu     sync.Mutex
	to     io.Writer
	masked [][]byte
	held   []byte // the end of what was written, where it may be the start of a masked value
	left   int
}

func newOutput(to io.Writer, limit int) *output { return &output{to: to, left: limit} }

// mask hides values from now on.
func (o *output) mask(values ...string) {
	for _, v := range values {
		if v != "" {
			o.masked = append(o.masked, []byte(v))
		}
	}
}

// Write never fails: a job goes on without its log.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := slices.Concat(o.held, p)
	for _, v := range o.masked {
		text = bytes.ReplaceAll(text, v, []byte("[MASKED]"))
	}
	keep := o.incomplete(text)
	o.emit(text[:len(text)-keep])
	o.held = bytes.Clone(text[len(text)-keep:])
	return len(p), nil
}

// incomplete is the length of the longest end of text with which a masked
// value starts.
func (o *output) incomplete(text []byte) int {
	longest := 0
	for _, v := range o.masked {
		for n := min(len(v)-1, len(text)); n > longest; n-- {
			if bytes.HasSuffix(text, v[:n]) {
				longest = n
			}
		}
	}
	return longest
}

func (o *output) emit(p []byte) {
	if o.left < 0 {
		return
	}
	if len(p) > o.left {
		p = append(bytes.Clone(p[:o.left]), "\n"+ansiYellow+"Job's log exceeded limit.\nJob execution will continue but no more output will be collected."+ansiReset+"\n"...)
		o.left = -1
	} else {
		o.left -= len(p)
	}
	_, _ = o.to.Write(p)
}

// flush writes what was held back.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.emit(o.held)
	o.held = nil
}

func (o *output) println(text string) { fmt.Fprint(o, ansiClear+text+ansiReset+"\n") }
func (o *output) info(text string)    { fmt.Fprint(o, ansiGreen+text+ansiReset+"\n") }
func (o *output) warning(text string) { fmt.Fprint(o, ansiYellow+"WARNING: "+text+ansiReset+"\n") }
func (o *output) error(text string)   { fmt.Fprint(o, ansiRed+"ERROR: "+text+ansiReset+"\n") }

// section wraps what a function writes into a collapsible section.
func (o *output) section(name, title string, f func() error) error {
	fmt.Fprintf(o, "section_start:%d:%s\r%s", time.Now().Unix(), name, ansiClear)
	o.println(ansiCyan + title + ansiReset)
	defer func() { fmt.Fprintf(o, "section_end:%d:%s\r%s", time.Now().Unix(), name, ansiClear) }()
	return f()
}
