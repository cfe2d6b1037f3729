package supervise

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
)

// The test binary plays the programs, too.
const (
	roleVariable = "SUPERVISE_TEST_ROLE"
	dirVariable  = "SUPERVISE_TEST_DIR"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "serve", "stubborn":
		if _, err := os.Stat(filepath.Join(dir, "broken")); err == nil {
			fmt.Fprintln(os.Stderr, "cannot serve: it is broken")
			os.Exit(3)
		}
		end := make(chan os.Signal, 1)
		signal.Notify(end, unix.SIGTERM)
		if err := os.WriteFile(filepath.Join(dir, "serves"), fmt.Append(nil, os.Getpid()), 0o600); err != nil {
			os.Exit(1)
		}
		for range end {
			if role == "serve" {
				os.Exit(0)
			}
		}
	case "supervisor":
		s := New(program(dir, "serve"), logrus.NewEntry(logrus.New()))
		if err := s.Start(context.Background()); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(s.PID())
		select {}
	}
}

// program plays a role. It is ready once the file "serves" holds its pid.
func program(dir, role string) Program {
	p := Program{
		Name:    "sample",
		Path:    "/proc/self/exe",
		Env:     []string{roleVariable + "=" + role, dirVariable + "=" + dir},
		Dir:     dir,
		PIDFile: filepath.Join(dir, "sample.pid"),
		LogFile: filepath.Join(dir, "sample.log"),
	}
	if exe, err := os.Executable(); err == nil {
		p.Path = exe
	}
	p.Ready = func(context.Context) error {
		r, err := p.read()
		if err != nil || r == nil {
			return fmt.Errorf("no pid file: %w", err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "serves"))
		if err == nil && string(b) != fmt.Sprint(r.PID) {
			err = errors.New("serves as another process")
		}
		return err
	}
	return p
}

// logs is a log that tests look into.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logs) entry() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(l)
	return logrus.NewEntry(log)
}

func start(t *testing.T, p Program) (*Supervisor, *logs) {
	t.Helper()
	l := new(logs)
	s := New(p, l.entry())
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, l
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true that %s", what)
		}
	}
}

func running(t *testing.T, pid int) api.Process {
	t.Helper()
	p, err := api.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStartStop(t *testing.T) {
	p := program(t.TempDir(), "serve")
	s, _ := start(t, p)
	proc := running(t, s.PID())
	if sid, err := unix.Getsid(proc.PID); err != nil || sid != proc.PID {
		t.Errorf("session %d, %v", sid, err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := api.FindProcess(proc.PID); err == nil {
		t.Error("the process is still there")
	}
	if _, err := os.Stat(p.PIDFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pid file: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("second stop: %v", err)
	}
}

func TestRestartAfterCrash(t *testing.T) {
	s, l := start(t, program(t.TempDir(), "serve"))
	first := running(t, s.PID())
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another process runs", func() bool { return s.PID() != first.PID })
	if !running(t, s.PID()).Alive() {
		t.Error("it does not")
	}
	if !strings.Contains(l.String(), "sample died and is started again: sample ended: signal: killed") {
		t.Errorf("log: %s", l)
	}
}

func TestRestartUntilItWorks(t *testing.T) {
	dir := t.TempDir()
	s, l := start(t, program(dir, "serve"))
	first := s.PID()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two starts failed", func() bool { return strings.Count(l.String(), "cannot serve: it is broken") >= 2 })
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs again", func() bool { return s.PID() != first })
}

func TestStartFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Program, string)
		want   []string
	}{
		{"exits at once", func(_ *Program, dir string) { _ = os.WriteFile(filepath.Join(dir, "broken"), nil, 0o600) },
			[]string{"start sample: sample ended: exit status 3", "the end of ", "sample.log:\n\tcannot serve: it is broken"}},
		{"never ready", func(p *Program, _ string) {
			p.ReadyTimeout = 200 * time.Millisecond
			p.Ready = func(context.Context) error { return errors.New("nobody listens") }
		}, []string{"not ready after 200ms: nobody listens", "it logged nothing to"}},
		{"no such program", func(p *Program, _ string) { p.Path = "/nonexistent" },
			[]string{"stat /nonexistent: no such file or directory"}},
		{"not executable", func(p *Program, dir string) {
			p.Path = filepath.Join(dir, "data")
			_ = os.WriteFile(p.Path, []byte("data"), 0o600)
		}, []string{"sample ended: exit status 126", "data"}},
		{"no directory for the pid file", func(p *Program, dir string) { p.PIDFile = filepath.Join(dir, "no/pid") },
			[]string{"no/pid.new: no such file or directory"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			p := program(dir, "serve")
			tc.change(&p, dir)
			err := New(p, new(logs).entry()).Start(t.Context())
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got  %v\nwant %s", err, want)
				}
			}
			if _, err := os.Stat(p.PIDFile); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pid file: %v", err)
			}
		})
	}
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	p := program(t.TempDir(), "serve")
	ctx, cancel := context.WithCancel(t.Context())
	var pid int
	p.Ready = func(context.Context) error {
		r, _ := p.read()
		pid = r.PID
		cancel()
		return errors.New("not ready")
	}
	if err := New(p, new(logs).entry()).Start(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := api.FindProcess(pid); err == nil {
		t.Error("the process is still there")
	}
}

func TestStopKillsTheStubborn(t *testing.T) {
	p := program(t.TempDir(), "stubborn")
	p.StopTimeout = 100 * time.Millisecond
	s, _ := start(t, p)
	pid := s.PID()
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := api.FindProcess(pid); err == nil {
		t.Error("the process is still there")
	}
}

// orphan starts a program under a supervisor of its own, which it kills.
func orphan(t *testing.T, p Program) api.Process {
	t.Helper()
	cmd := exec.Command(p.Path)
	cmd.Env = append(slices.Clone(p.Env), roleVariable+"=supervisor")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return running(t, pid)
}

func TestAdoption(t *testing.T) {
	p := program(t.TempDir(), "serve")
	first := orphan(t, p)
	if !first.Alive() {
		t.Fatal("the program died with its supervisor")
	}
	s, l := start(t, p)
	if s.PID() != first.PID || !s.Adopted() {
		t.Fatalf("%d was started beside %d", s.PID(), first.PID)
	}
	if strings.Contains(l.String(), "another binary") {
		t.Errorf("log: %s", l)
	}
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the adopted one is replaced", func() bool { return s.PID() != first.PID })
}

func TestLeaveAndAdopt(t *testing.T) {
	p := program(t.TempDir(), "serve")
	first, _ := start(t, p)
	first.Leave()
	second, _ := start(t, p)
	if first.PID() != second.PID() {
		t.Errorf("%d beside %d", second.PID(), first.PID())
	}
	second.Leave()
	if !running(t, first.PID()).Alive() {
		t.Error("left, it does not run on")
	}
}

func TestStopWhatAnotherStarted(t *testing.T) {
	p := program(t.TempDir(), "serve")
	left := orphan(t, p)
	if err := New(p, new(logs).entry()).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := api.FindProcess(left.PID); err == nil {
		t.Error("the process is still there")
	}
}

func TestAdoptFromAnotherBinary(t *testing.T) {
	dir := t.TempDir()
	p := program(dir, "serve")
	original := p.Path
	p.Path = filepath.Join(dir, "sample")
	replace := func() {
		from, err := os.Open(original)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		to, err := os.OpenFile(p.Path+".new", os.O_CREATE|os.O_WRONLY, 0o700)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(to, from); err != nil {
			t.Fatal(err)
		}
		to.Close()
		if err := os.Rename(p.Path+".new", p.Path); err != nil {
			t.Fatal(err)
		}
	}
	replace()
	first, _ := start(t, p)
	first.Leave()
	replace()
	second, l := start(t, p)
	if second.PID() != first.PID() {
		t.Errorf("%d beside %d", second.PID(), first.PID())
	}
	if !strings.Contains(l.String(), "another binary") {
		t.Errorf("log: %s", l)
	}
}

func TestLeftoverThatDoesNotServe(t *testing.T) {
	dir := t.TempDir()
	p := program(dir, "serve")
	first := orphan(t, p)
	if err := os.Remove(filepath.Join(dir, "serves")); err != nil {
		t.Fatal(err)
	}
	p.ReadyTimeout = 2 * time.Second
	s, _ := start(t, p)
	if s.PID() == first.PID || first.Alive() {
		t.Errorf("%d was adopted", first.PID)
	}
}

func TestForeignPIDFile(t *testing.T) {
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	me := running(t, os.Getpid())
	exe, err := identify("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]record{
		"pid used again": {Process: api.Process{PID: me.PID, Start: me.Start + 1}, Boot: boot, Exe: exe},
		"another boot":   {Process: me, Boot: "before", Exe: exe},
	} {
		t.Run(name, func(t *testing.T) {
			p := program(t.TempDir(), "serve")
			if err := p.write(r); err != nil {
				t.Fatal(err)
			}
			s, _ := start(t, p)
			if s.PID() == me.PID {
				t.Error("adopted the test itself")
			}
		})
	}
	t.Run("not a pid file", func(t *testing.T) {
		p := program(t.TempDir(), "serve")
		if err := os.WriteFile(p.PIDFile, []byte("123\nabc"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := New(p, new(logs).entry()).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "is no pid file") {
			t.Errorf("got %v", err)
		}
	})
}

// TestKilledBeforeExecuted stops where a supervisor can be killed: the
// process is there, the program is not executed.
func TestKilledBeforeExecuted(t *testing.T) {
	dir := t.TempDir()
	p := program(dir, "serve")
	gated := func(stdin io.Reader) *exec.Cmd {
		cmd := exec.Command(shell, "-c", gate, p.Path)
		cmd.Env, cmd.Stdin = p.Env, stdin
		return cmd
	}
	t.Run("before the pid is on record", func(t *testing.T) {
		if err := gated(strings.NewReader("")).Run(); err == nil {
			t.Error("the gate opened")
		}
		if _, err := os.Stat(filepath.Join(dir, "serves")); err == nil {
			t.Error("the program was executed")
		}
	})
	t.Run("after", func(t *testing.T) {
		hold, release, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer release.Close()
		cmd := gated(hold)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		boot, _ := bootID()
		exe, _ := identify(p.Path)
		if err := p.write(record{Process: running(t, cmd.Process.Pid), Boot: boot, Exe: exe}); err != nil {
			t.Fatal(err)
		}
		s, _ := start(t, p)
		<-ended
		if s.PID() == cmd.Process.Pid {
			t.Error("adopted a shell")
		}
	})
}

func TestReapedWaitsForZombies(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := New(program(t.TempDir(), "serve"), new(logs).entry()).program
	boot, _ := bootID()
	zombie := running(t, cmd.Process.Pid)
	if err := p.write(record{Process: zombie, Boot: boot}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a zombie", func() bool { return !zombie.Alive() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.reaped(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("did not wait for it: %v", err)
	}
	_ = cmd.Wait()
	if err := p.reaped(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var text strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&text, "line %d\n", i)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	lines, err := lastLines(path, 0)
	if err != nil || len(lines) != maxLines || lines[maxLines-1] != "line 1999" {
		t.Errorf("%q, %v", lines, err)
	}
	if lines, err := lastLines(path, int64(text.Len())-10); err != nil || len(lines) != 1 || lines[0] != "line 1999" {
		t.Errorf("%q, %v", lines, err)
	}
	if lines, err := lastLines(path, int64(text.Len())); err != nil || lines != nil {
		t.Errorf("%q, %v", lines, err)
	}
	if err := os.Truncate(path, maxLog+1); err != nil {
		t.Fatal(err)
	}
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if s, err := os.Stat(path); err != nil || s.Size() != 0 {
		t.Errorf("not rotated: %v, %v", s.Size(), err)
	}
	if s, err := os.Stat(path + ".1"); err != nil || s.Size() != maxLog+1 {
		t.Errorf("lost: %v", err)
	}
}

func TestRecordIsJSON(t *testing.T) {
	p := program(t.TempDir(), "serve")
	s, _ := start(t, p)
	b, err := os.ReadFile(p.PIDFile)
	if err != nil {
		t.Fatal(err)
	}
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil || r["pid"] != float64(s.PID()) {
		t.Errorf("%s: %v", b, err)
	}
}
