package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/agent"
	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Run runs the script of one of gitlab-runner's stages. User stages run in
// the build container; the runner's own, of which newer runners may bring
// more, in the helper, as the build container's user.
func (s *Stage) Run(ctx context.Context, script, stage string) error {
	st, err := s.load()
	if err != nil {
		return fmt.Errorf("the job was not prepared: %w", err)
	}
	if st.Admission == nil {
		return errors.New("the job was not prepared: prepare ended early")
	}
	if st.Admission.Caches.Serves {
		return s.runBetweenCaches(ctx, st, script, stage)
	}
	return s.runScript(ctx, st, script, stage)
}

func (s *Stage) runScript(ctx context.Context, st *state, script, stage string) error {
	p, as := st.Helper, &st.User
	if userStage(stage) {
		p, as = st.Build, nil
	}
	text, err := sealedScript(script)
	if err != nil {
		return err
	}
	defer text.Close()

	kills := container.OOMKills(st.Admission.Cgroup)
	stopLogs := s.followServices(ctx, st, stage)
	exit, err := runIn(ctx, p, agent.Stage{Script: text, Stdout: os.Stdout, Stderr: os.Stderr, As: as, Env: environment(st.CacheEnv)})
	stopLogs()
	if errors.Is(err, agent.ErrLost) {
		kills = 0 // a stage before may have been the end of the container
	}
	oom := container.OOMKills(st.Admission.Cgroup) > kills
	err = s.verdict(ctx, st, stage, exit, err, oom)
	s.report(st, stage, exit, err, ctx.Err() != nil)
	return err
}

// userStage tells the job's own scripts from the runner's.
func userStage(stage string) bool {
	return stage == "build_script" || stage == "after_script" || strings.HasPrefix(stage, "step_")
}

func runIn(ctx context.Context, p process, stage agent.Stage) (agent.Exit, error) {
	if !p.Alive() {
		return agent.Exit{}, agent.ErrLost
	}
	a, err := agent.Connect(ctx, p.PID)
	if err != nil {
		if !p.Alive() {
			return agent.Exit{}, agent.ErrLost
		}
		return agent.Exit{}, err
	}
	defer a.Close()
	return a.Run(ctx, stage)
}

// sealedScript is the script in memory that nobody can change: the container
// gets a descriptor of it, through which root there could otherwise write to
// a file of the node.
func sealedScript(path string) (*os.File, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read script: %w", err)
	}
	return sealed(b)
}

func sealed(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("script", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("hold script: %w", err)
	}
	f := os.NewFile(uintptr(fd), "script")
	_, err1 := f.Write(b)
	_, err2 := f.Seek(0, io.SeekStart)
	_, err3 := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	if err := errors.Join(err1, err2, err3); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("hold script: %w", err)
	}
	return f, nil
}

// verdict says in a sentence how the stage ended, if not well.
func (s *Stage) verdict(ctx context.Context, st *state, stage string, exit agent.Exit, err error, oom bool) error {
	limit := st.Admission.Grant.Limits.Memory
	outOfMemory := fmt.Sprintf("the job ran out of memory (limit %v), and the kernel killed one of its processes: let it use less, or ask for more with %s", limit, executor.MemoryLimitVariable)
	switch {
	case ctx.Err() != nil:
		return executor.Failf("%s was stopped: the job was cancelled, or reached its time-out, which `timeout:` in .gitlab-ci.yml raises", stage)
	case errors.Is(err, agent.ErrLost):
		if oom {
			return executor.Failf("%s: %s", stage, outOfMemory)
		}
		return lost(stage)
	case err != nil:
		return fmt.Errorf("run %s: %w", stage, err)
	case exit.Code == 0:
		return nil
	}
	failure := &executor.BuildFailure{ExitCode: exit.Code, Err: fmt.Errorf("%s: exit code %d", stage, exit.Code)}
	switch {
	case oom:
		failure.Err = fmt.Errorf("%s: exit code %d: %s", stage, exit.Code, outOfMemory)
	case diskFull(st.Admission.Dirs.Builds):
		failure.Err = fmt.Errorf("%s: exit code %d: the disk of the runner host is full: the job's files lie on it; free some room there, or use a runner with more", stage, exit.Code)
	case exit.Signal != 0:
		failure.Err = fmt.Errorf("%s: exit code %d: the shell was killed by %v", stage, exit.Code, syscall.Signal(exit.Signal))
	}
	return failure
}

// lost explains a container that is gone.
func lost(stage string) error {
	name := "build"
	if !userStage(stage) {
		name = "helper"
	}
	return fmt.Errorf("%s: the job's %s container is gone: it was removed or killed on the runner host; `berth jobs` there and the logs of berthd and containerd tell more", stage, name)
}

// diskFull tells whether a file system has next to no room or no inodes left.
func diskFull(path string) bool {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return false
	}
	const least = 1 << 20
	return fs.Bavail*uint64(fs.Bsize) < least || (fs.Files > 0 && fs.Ffree < 16)
}

// report tells berthd how the stage ended. It changes nothing for the job
// when berthd is away just now.
func (s *Stage) report(st *state, stage string, exit agent.Exit, err error, cancelled bool) {
	if !userStage(stage) && err == nil {
		return
	}
	o := api.Outcome{Stage: stage, Status: "success", ExitCode: exit.Code}
	var build *executor.BuildFailure
	switch {
	case cancelled:
		o.Status = "canceled"
	case errors.As(err, &build):
		o.Status = "failed"
	case err != nil:
		o.Status = "system_failure"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.Berthd.Outcome(ctx, st.Job, o)
}

// followServices shows the services' logs while a user stage runs, where the
// job asks for it.
func (s *Stage) followServices(ctx context.Context, st *state, stage string) (stop func()) {
	if !userStage(stage) || len(st.ServiceLogs) == 0 || s.Call.Variable("CI_DEBUG_SERVICES") != "true" {
		return func() {}
	}
	show := func() {
		for i := range st.ServiceLogs {
			st.ServiceLogs[i].show()
		}
	}
	done, finished := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(finished)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			show()
			select {
			case <-tick.C:
			case <-done:
				show()
				return
			}
		}
	}()
	return func() {
		close(done)
		<-finished
		if err := s.save(st); err != nil {
			warn(ctx, "berth: %v", err)
		}
	}
}
