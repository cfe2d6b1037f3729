package image

import (
	"fmt"
	"io"
	"sync"
)

// jobLog writes whole lines to the job log; progress comes from a goroutine of its own.
type jobLog struct {
	mu sync.Mutex
	w  io.Writer
}

func newJobLog(w io.Writer) *jobLog {
	if w == nil {
		w = io.Discard
	}
	return &jobLog{w: w}
}

// Printf writes a line. A job log that cannot be written to is no reason to fail a pull.
func (l *jobLog) Printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, format+"\n", args...)
}
