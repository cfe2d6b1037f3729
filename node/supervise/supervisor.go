// Package supervise keeps a program running that outlives its supervisor: one
// that was killed leaves it running, and the next one adopts it. It knows
// nothing of what the programs do, and of services that depend on each other.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/sirupsen/logrus"
)

// Program is what a Supervisor runs.
type Program struct {
	Name string
	// Path of a binary. A script will not do: who adopts it looks for Path
	// behind /proc/PID/exe.
	Path string
	Args []string
	Env  []string
	Dir  string
	// Ready returns nil once the program serves. It is asked until then.
	// Without it a program is ready as soon as it is executed.
	Ready func(context.Context) error
	// ReadyTimeout and StopTimeout are how long it may take to be ready and
	// to heed SIGTERM; 30 and 10 seconds where zero.
	ReadyTimeout, StopTimeout time.Duration
	// PIDFile tells the next supervisor which process it is. There must be
	// one supervisor at a time for each.
	PIDFile string
	// LogFile takes what the program writes to stdout and stderr.
	LogFile string
}

// steady is how long a program has to run for its next death to count as the
// first.
const steady = time.Minute

// Supervisor keeps one program running.
type Supervisor struct {
	program Program
	log     *logrus.Entry
	leave   context.CancelFunc
	kept    chan struct{} // closed when nobody restarts the program any more
	adopted bool

	mu      sync.Mutex
	process *process
}

// New makes a supervisor, which does nothing before Start.
func New(p Program, log *logrus.Entry) *Supervisor {
	if p.ReadyTimeout == 0 {
		p.ReadyTimeout = 30 * time.Second
	}
	if p.StopTimeout == 0 {
		p.StopTimeout = 10 * time.Second
	}
	return &Supervisor{program: p, log: log.WithField("program", p.Name)}
}

// Start adopts the program if it runs already, starts it if not, and returns
// when it is ready. From then on it is started again whenever it dies, until
// Leave or Stop.
func (s *Supervisor) Start(ctx context.Context) error {
	p, err := s.adopt(ctx)
	if err == nil && p == nil {
		if p, err = s.launch(ctx); err != nil {
			err = errors.Join(err, s.end(ctx))
		}
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", s.program.Name, err)
	}
	s.adopted = p.watch != nil
	s.set(p)
	keep, leave := context.WithCancel(context.WithoutCancel(ctx))
	s.leave, s.kept = leave, make(chan struct{})
	go s.keep(keep, p)
	return nil
}

// Adopted tells whether Start found the program running.
func (s *Supervisor) Adopted() bool { return s.adopted }

// PID of the process that runs now, or ran last.
func (s *Supervisor) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.PID
}

// Leave stops watching the program, which runs on.
func (s *Supervisor) Leave() {
	if s.leave != nil {
		s.leave()
		<-s.kept
		s.process.forget()
	}
}

// Disown stops watching the program for good: it runs on, and the next Start
// starts another.
func (s *Supervisor) Disown() error {
	s.Leave()
	if err := os.Remove(s.program.PIDFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("disown %s: %w", s.program.Name, err)
	}
	return nil
}

// Stop ends the program, with SIGKILL if it does not heed SIGTERM. It need
// not have been started by this supervisor.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.Leave()
	if err := s.end(ctx); err != nil {
		return fmt.Errorf("stop %s: %w", s.program.Name, err)
	}
	return nil
}

func (s *Supervisor) set(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
}

// keep starts the program again whenever it dies, less and less eagerly.
func (s *Supervisor) keep(ctx context.Context, p *process) {
	defer close(s.kept)
	delay := backoff.NewExponentialBackOff()
	delay.InitialInterval, delay.MaxInterval, delay.Multiplier = 100*time.Millisecond, 30*time.Second, 2
	for {
		began := time.Now()
		select {
		case <-ctx.Done():
			return
		case <-p.done:
		}
		if time.Since(began) > steady {
			delay.Reset()
		}
		s.log.Errorf("%s died and is started again: %v", s.program.Name, s.program.died(p))
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay.NextBackOff()):
			}
			next, err := s.launch(ctx)
			if err == nil {
				p = next
				break
			}
			if ctx.Err() != nil { // whoever comes next adopts it
				return
			}
			s.log.WithError(errors.Join(err, s.end(ctx))).Errorf("start %s again", s.program.Name)
		}
		s.set(p)
		s.log.WithField("pid", p.PID).Infof("%s runs again", s.program.Name)
	}
}

// adopt takes on the process that another supervisor left, if there is one
// and it serves.
func (s *Supervisor) adopt(ctx context.Context) (*process, error) {
	p, err := s.program.find(ctx)
	if err != nil || p == nil {
		return nil, err
	}
	log := s.log.WithField("pid", p.PID)
	if err := s.program.await(ctx, p); err != nil {
		p.forget()
		if ctx.Err() != nil {
			return nil, err
		}
		log.WithError(err).Warnf("%s was left running but does not serve: starting it anew", s.program.Name)
		return nil, s.end(ctx)
	}
	if now, err := identify(s.program.Path); err != nil || now != p.Exe {
		log.Warnf("%s runs from another binary than %s is now; it is kept, since jobs depend on it", s.program.Name, s.program.Path)
	}
	log.Infof("adopted %s", s.program.Name)
	return p, nil
}

// launch starts the program and waits until it is ready. In case of an error
// it may run nevertheless.
func (s *Supervisor) launch(ctx context.Context) (*process, error) {
	if err := s.program.reaped(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		s.log.WithError(err).Warn("going on, but it may fail")
	}
	p, err := s.program.start()
	if err != nil {
		return nil, err
	}
	if err := s.program.await(ctx, p); err != nil {
		return nil, err
	}
	s.log.WithField("pid", p.PID).Infof("started %s", s.program.Name)
	return p, nil
}

// end makes sure that the process of the pid file is gone, cancelled or not.
func (s *Supervisor) end(ctx context.Context) error {
	p, err := s.program.find(ctx)
	if err != nil {
		return err
	}
	if p != nil {
		defer p.forget()
		if err := p.end(ctx, s.program.StopTimeout); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.program.StopTimeout)
	defer cancel()
	if err := s.program.reaped(ctx); err != nil {
		s.log.Warn(err) // what matters is that it is dead
	}
	if err := os.Remove(s.program.PIDFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// await returns when a process is ready, or an error with the end of its log.
func (p Program) await(ctx context.Context, run *process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.ReadyTimeout, fmt.Errorf("not ready after %v", p.ReadyTimeout))
	defer cancel()
	go func() { // so that Ready does not wait for what is dead
		select {
		case <-ctx.Done():
		case <-run.done:
			cancel()
		}
	}()
	ready := p.Ready
	if ready == nil {
		ready = run.executed
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		select {
		case <-run.done:
			return p.died(run)
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-run.done:
			return p.died(run)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w; %s", context.Cause(ctx), err, p.ending(run))
		case <-tick.C:
		}
	}
}

// died says how a process ended, and what it said last.
func (p Program) died(run *process) error {
	return fmt.Errorf("%s ended: %s; %s", p.Name, run.how, p.ending(run))
}
