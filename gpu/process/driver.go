package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/gpu"
)

// patience is how long a call may take. One that takes longer will not come
// back: NVML waits for the kernel, which waits for the device.
var patience = map[string]time.Duration{"Inventory": 30 * time.Second, "Read": 10 * time.Second, "Events": 15 * time.Second}

// longestPause is the most time between a failed start and the next.
const longestPause = 30 * time.Second

// Driver is a gpu.Driver in a process of its own, which is started when it is
// needed, and again after it ended or hung.
type Driver struct {
	program string
	args    []string
	log     *logrus.Entry

	mu      sync.Mutex
	current *session
	failed  error // why the last one could not be started, or ended
	pause   time.Duration
	next    time.Time // no start before
}

// session is one life of the process.
type session struct {
	cmd    *exec.Cmd
	client *rpc.Client
	stdin  io.Closer
	ended  chan struct{} // closed when the process is gone
	once   sync.Once
	why    error // valid when ended or being ended
}

// New makes a driver; the first call starts the program.
func New(log *logrus.Entry, program string, args ...string) *Driver {
	return &Driver{program: program, args: args, log: log}
}

var _ gpu.Driver = (*Driver)(nil)

// Inventory tells what there is. A driver that cannot tell is given up, so
// that the next call begins with a new one, which loads what was installed
// meanwhile.
func (d *Driver) Inventory(ctx context.Context) (*gpu.Inventory, error) {
	var a Answer
	s, err := d.call(ctx, "Inventory", struct{}{}, &a)
	if err != nil {
		return nil, err
	}
	if err := a.err(); err != nil {
		d.end(s, err)
		return nil, err
	}
	d.mu.Lock()
	d.pause = 0
	d.mu.Unlock()
	return a.Stock, nil
}

// Read tells how devices are.
func (d *Driver) Read(ctx context.Context, uuids []string) (map[string]gpu.Reading, error) {
	var a Answer
	if _, err := d.call(ctx, "Read", uuids, &a); err != nil {
		return nil, err
	}
	return a.Readings, a.err()
}

// Events waits a while for what happens.
func (d *Driver) Events(ctx context.Context) ([]gpu.Event, error) {
	var a Answer
	if _, err := d.call(ctx, "Events", struct{}{}, &a); err != nil {
		return nil, err
	}
	return a.Events, a.err()
}

// Close ends the process, if there is one.
func (d *Driver) Close() error {
	d.mu.Lock()
	s := d.current
	d.next = time.Now().Add(24 * time.Hour) // nobody starts it again
	d.failed = fmt.Errorf("it was closed: %w", errdefs.ErrUnavailable)
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	d.end(s, errors.New("it was closed"))
	select {
	case <-s.ended:
	case <-time.After(time.Second): // the kernel holds on to it
	}
	return nil
}

// call makes a call and waits, but not for ever: who does not answer in time
// is ended, and all that wait for it hear of that.
func (d *Driver) call(ctx context.Context, method string, in any, out *Answer) (*session, error) {
	s, err := d.session()
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(patience[method])
	defer timeout.Stop()
	call := s.client.Go(name+"."+method, in, out, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error == nil {
			return s, nil
		}
		// The process is gone, or speaks no sense.
		d.end(s, fmt.Errorf("it ended during a call: %w", call.Error))
	case <-timeout.C:
		d.end(s, fmt.Errorf("the driver has not answered %s for %v; is a GPU broken?", method, patience[method]))
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return nil, fmt.Errorf("ask %s: %w: %w", d.program, s.why, errdefs.ErrUnavailable)
}

// session gives the process that runs, or starts one.
func (d *Driver) session() (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil {
		return d.current, nil
	}
	if time.Now().Before(d.next) {
		return nil, fmt.Errorf("%s is not running: %w", d.program, d.failed)
	}
	s, err := d.start()
	if err != nil {
		d.failed = err
		d.postpone()
		return nil, err
	}
	d.current = s
	return s, nil
}

// postpone keeps a program that ends again and again from being started all
// the time; d.mu is held.
func (d *Driver) postpone() {
	d.next = time.Now().Add(d.pause)
	d.pause = min(max(2*d.pause, 250*time.Millisecond), longestPause)
}

func (d *Driver) start() (*session, error) {
	cmd := exec.Command(d.program, d.args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for berthd
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	stderr, err3 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("start %s: %w", d.program, err)
	}
	if err := cmd.Start(); err != nil {
		class := error(errdefs.ErrUnavailable)
		if errors.Is(err, os.ErrNotExist) {
			class = errdefs.ErrNotFound
		}
		return nil, fmt.Errorf("start %s: %w: %w", d.program, err, class)
	}
	s := &session{
		cmd: cmd, stdin: stdin, ended: make(chan struct{}),
		client: jsonrpc.NewClient(pipes{stdout, stdin}),
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			d.log.WithField("program", "berth-gpu").Warn(lines.Text())
		}
	}()
	go func() {
		<-logged // Wait closes what is read from
		err := cmd.Wait()
		if err == nil {
			err = errors.New("it ended by itself")
		}
		d.end(s, err)
		close(s.ended)
	}()
	return s, nil
}

// end ends a process for a reason. Only the first reason counts. It does not
// wait: the kernel may hold on to the process for as long as it likes.
func (d *Driver) end(s *session, why error) {
	s.once.Do(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		s.why = why
		d.failed = why
		if d.current == s {
			d.current = nil
			d.postpone()
		}
		_ = s.cmd.Process.Kill()
		_ = s.client.Close()
	})
}

// pipes are the process's stdout and stdin.
type pipes struct {
	io.Reader
	io.WriteCloser
}
