package supervise

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
)

const (
	maxLog   = 10 << 20 // before a start moves it aside
	maxLines = 10       // of the end that errors quote
	maxEnd   = 4 << 10
)

// openLog opens a log for appending. One that has grown large becomes PATH.1.
func openLog(path string) (*os.File, error) {
	if s, err := os.Stat(path); err == nil && s.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o640)
}

// ending quotes what a process wrote last.
func (p Program) ending(run *process) string {
	lines, err := lastLines(p.LogFile, run.Log)
	switch {
	case err != nil:
		return fmt.Sprintf("its log cannot be read: %v", err)
	case len(lines) == 0:
		return "it logged nothing to " + p.LogFile
	}
	return fmt.Sprintf("the end of %s:\n\t%s", p.LogFile, strings.Join(lines, "\n\t"))
}

// lastLines reads the end of a file, from an offset on.
func lastLines(path string, from int64) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	cut := size-maxEnd > from
	b, err := io.ReadAll(io.NewSectionReader(f, max(from, size-maxEnd), maxEnd))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	if cut && len(lines) > 1 { // the first is the end of one
		lines = lines[1:]
	}
	if len(lines) == 1 && lines[0] == "" {
		return nil, nil
	}
	return lines[max(0, len(lines)-maxLines):], nil
}
