package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"gitlab.com/berth-ci/berth/agent"
	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/test/gitlab"
)

// BenchmarkExec is how long it takes to run a script that does nothing in a
// job's container, by the agent as Berth does it and by containerd and runc.
func BenchmarkExec(b *testing.B) {
	needBed(b)
	task := buildTask(b)
	ways := []struct {
		name, metric string
		run          func(context.Context) error
	}{
		{"agent", "agent-ms", func(ctx context.Context) error { return agentRun(ctx, int(task.Pid())) }},
		{"exec by containerd's client", "client-ms", func(ctx context.Context) error { return clientExec(ctx, task) }},
		{"ctr task exec", "ctr-ms", func(ctx context.Context) error { return ctrExec(ctx, task.ID()) }},
	}
	const column, each = "time", 5
	s, rounds := newSamples(), 0
	for ; b.Loop(); rounds++ {
		for range each {
			for _, way := range ways {
				started := time.Now()
				err := way.run(b.Context())
				s.add(way.name, column, time.Since(started))
				if err != nil {
					b.Fatalf("%s: %v", way.name, err)
				}
			}
		}
	}
	section("An empty script in a running container: medians of %d", rounds*each)
	rows := [][]string{{"", "ms"}}
	for _, way := range ways {
		rows = append(rows, []string{way.name, number(s.median(way.name, column), 2)})
		b.ReportMetric(s.median(way.name, column), way.metric)
	}
	table(rows)
}

// buildTask starts a job that waits, and finds its build container.
func buildTask(b *testing.B) containerd.Task {
	b.Helper()
	l := bed.lanes[1]
	j, err := l.enqueue(gitlab.JobSpec{Project: bed.projects[0], Name: "waiting", Script: []string{"echo ready", "sleep 3600"}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		j.ForceCancel()
		if _, err := l.result(); err != nil { // its container is then gone, too
			b.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := j.WaitLog(ctx, "\nready"); err != nil {
		b.Fatalf("wait for job: %v\n%s", err, j.Log())
	}
	client, err := bed.node.Containerd()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	found, err := client.Containers(ctx, fmt.Sprintf("labels.%q==%s", container.RoleLabel, container.RoleBuild))
	if err != nil || len(found) != 1 {
		b.Fatalf("found %d build containers: %v", len(found), err)
	}
	task, err := found[0].Task(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	return task
}

// agentRun is what `berth run` does for a stage.
func agentRun(ctx context.Context, pid int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	a, err := agent.Connect(ctx, pid)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	exit, err := a.Run(ctx, agent.Stage{Script: null, Stdout: null, Stderr: null})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("exit code %d", exit.Code)
	}
	return err
}

const execID = "bench"

// clientExec has containerd and runc start a shell.
func clientExec(ctx context.Context, task containerd.Task) (err error) {
	spec, err := task.Spec(ctx)
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args, process.Terminal = []string{"sh", "-c", ":"}, false
	p, err := task.Exec(ctx, execID, &process, cio.NullIO)
	if err != nil {
		return err
	}
	defer func() {
		_, errDelete := p.Delete(ctx)
		err = errors.Join(err, errDelete)
	}()
	ended, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	status := <-ended
	if status.ExitCode() != 0 {
		return fmt.Errorf("exit code %d: %w", status.ExitCode(), status.Error())
	}
	return nil
}

// ctrExec does the same by containerd's own command.
func ctrExec(ctx context.Context, id string) error {
	c := bed.node.Config
	ctr := exec.CommandContext(ctx, filepath.Join(c.Runtime.Path, "ctr"),
		"--address", filepath.Join(c.State, "containerd", "containerd.sock"), "--namespace", c.Runtime.Namespace,
		"task", "exec", "--exec-id", execID, id, "sh", "-c", ":")
	if out, err := ctr.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
