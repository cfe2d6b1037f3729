package agent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper starts processes and waits for them and for every orphan of the
// container: as its main process, or as a subreaper below one, the agent
// inherits them.
type reaper struct {
	mu    sync.Mutex
	exits map[int]chan<- syscall.WaitStatus
}

func newReaper() *reaper {
	r := &reaper{exits: map[int]chan<- syscall.WaitStatus{}}
	// Fails on kernels before 3.4 only; then orphans go to the main process.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	go func() {
		for range signals {
			r.reap()
		}
	}()
	return r
}

// start runs a program; its exit comes on the channel. No child is reaped
// between fork and registration, since both hold the lock.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	exit := make(chan syscall.WaitStatus, 1)
	r.exits[pid] = exit
	return pid, exit, nil
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if exit, ok := r.exits[pid]; ok {
			delete(r.exits, pid)
			exit <- status
		}
	}
}
