package builds_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/builds"
)

// child is a berthd that serves a job until it is killed.
func child(text string) error {
	var c struct {
		Engine   buildkit.Config
		Registry string
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := buildkit.Open(ctx, c.Engine)
	if err != nil {
		return err
	}
	s, err := builds.New(ctx, e, builds.Config{Registries: map[string]builds.Registry{c.Registry: {PlainHTTP: true}}})
	if err != nil {
		return err
	}
	if _, err := e.Retake(ctx, buildkit.Held{}); err != nil {
		return err
	}
	l, err := net.Listen("unix", filepath.Join(c.Engine.Root, "child.sock"))
	if err != nil {
		return err
	}
	if _, err := s.Serve(l, builds.Job{Key: "killed", Namespace: "p1"}); err != nil {
		return err
	}
	fmt.Println("serving")
	<-ctx.Done()
	return ctx.Err()
}

// What builds of a berthd had that is killed is gone when the next one serves.
func TestKilled(t *testing.T) {
	f := newFixture(t)
	f.must(f.service.Close())
	f.service = nil
	f.must(f.Close())
	f.Engine.Engine = nil
	config, err := json.Marshal(map[string]any{"Engine": f.Config, "Registry": f.registry.Address})
	f.must(err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	f.must(err)
	f.must(cmd.Start())
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		f.Error(cmd.Wait())
		return
	}
	j := &job{fixture: f}
	j.client, err = client.New(t.Context(), "unix://"+filepath.Join(f.Config.Root, "child.sock"))
	f.must(err)
	defer j.client.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := j.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c,sharing=locked touch /c/f && sleep 1000\n"})
		ended <- err
	}()
	f.waitFor("the RUN step", func() bool { return len(f.tasks()) == 1 })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := <-ended; err == nil {
		t.Error("the build ended well")
	}
	if len(f.tasks()) != 1 {
		t.Log("the RUN step ended with berthd")
	}
	if len(f.mounts()) == 0 {
		t.Error("BuildKit mounts nothing where it is looked for")
	}

	var openErr error
	f.Engine.Engine, openErr = buildkit.Open(t.Context(), f.Config)
	f.must(openErr)
	f.serve()
	_, err = f.Retake(t.Context(), buildkit.Held{})
	f.must(err)
	if left := f.containers(); len(left) > 0 {
		t.Errorf("left containers %v", left)
	}
	if left := f.mounts(); len(left) > 0 {
		t.Errorf("left mounts %v", left)
	}
	next := f.job("next", "p1")
	log, err := next.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c,sharing=locked ls /c\n"})
	if err != nil || !strings.Contains(log, "f") {
		t.Errorf("the cache has %q, %v", log, err)
	}
}

// mounts are those that builds make.
func (f *fixture) mounts() []string {
	f.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	f.must(err)
	var list []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, f.Config.Root+"/") {
			list = append(list, line)
		}
	}
	return list
}
