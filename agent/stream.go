package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// stream carries one output of a stage from its pipe to the runner's.
type stream struct {
	read  *os.File
	write *os.File // the stage's end; closed here once the stage has started
	to    *os.File
	done  chan error
}

func newStream(to *os.File) (*stream, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make output pipe: %w", err)
	}
	// Fewer switches between writer and copier; the default serves too.
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<20)
	// Only the agent's end is non-blocking: few programs expect it of theirs.
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, fmt.Errorf("make output pipe: %w", err)
	}
	return &stream{
		read:  os.NewFile(uintptr(p[0]), "stage output"),
		write: os.NewFile(uintptr(p[1]), "stage output"),
		to:    to,
		done:  make(chan error, 1),
	}, nil
}

// copy starts to carry output.
func (s *stream) copy() {
	s.write.Close()
	go func() {
		_, err := io.CopyBuffer(onlyWriter{s.to}, onlyReader{s.read}, make([]byte, 256<<10))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			// The runner no longer listens; the stage shall not block on that.
			_, err = io.Copy(io.Discard, onlyReader{s.read})
		}
		s.done <- err
	}()
}

// finish passes on what was written until now, which is all that the stage
// wrote if it has ended, and lets go of the runner's stream. Processes left in
// the background may hold the pipe for as long as they like: their further
// output goes nowhere, without a SIGPIPE for them.
func (s *stream) finish() {
	_ = s.read.SetReadDeadline(past)
	if err := <-s.done; errors.Is(err, os.ErrDeadlineExceeded) {
		if n, err := s.pending(); err == nil && n > 0 {
			_ = s.read.SetReadDeadline(never)
			_, _ = io.CopyN(onlyWriter{s.to}, s.read, int64(n))
		}
	}
	s.to.Close()
	_ = s.read.SetReadDeadline(never)
	go func() {
		_, _ = io.Copy(io.Discard, s.read)
		s.read.Close()
	}()
}

// pending counts the bytes that wait in the pipe.
func (s *stream) pending() (n int, err error) {
	raw, err := s.read.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n, errors.Join(ctlErr, err)
}

// discard undoes newStream where the stage did not start.
func (s *stream) discard() {
	s.read.Close()
	s.write.Close()
	s.to.Close()
}

// onlyReader and onlyWriter hide the fast paths of os.File, which do not
// observe read deadlines set while they are under way.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
