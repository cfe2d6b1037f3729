package buildkit_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/spec"
)

// A job's container has its caches, goes on with them when berthd is restarted, and publishes what it wrote.
func TestContainer(t *testing.T) {
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs a static busybox: install busybox-static")
	}
	e := enginetest.New(t)
	ctx := namespaces.WithNamespace(t.Context(), e.Config.Namespace)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mount, err := e.Mounts().Acquire(ctx, cachemount.Request{Key: "p/shared", Job: "job", Sharing: spec.Shared})
	must(err)
	clone, err := e.Generations().Clone(ctx, "p/snapshot", "job")
	must(err)
	must(clone.Mount())

	rootfs := filepath.Join(e.Config.Root, "rootfs")
	for _, dir := range []string{"bin", "proc", "dev", "sys", "run", "shared", "snapshot"} {
		must(os.MkdirAll(filepath.Join(rootfs, dir), 0o755))
	}
	program, err := os.ReadFile(busybox)
	must(err)
	must(os.WriteFile(filepath.Join(rootfs, "bin/sh"), program, 0o755))

	client, err := containerd.New(e.Config.Address)
	must(err)
	defer client.Close()
	// It writes before and after it is told to go on.
	script := `set -e; for d in /shared /snapshot; do echo before > $d/f; done; echo ready; read go; for d in /shared /snapshot; do echo after >> $d/f; done`
	container, err := client.NewContainer(ctx, "job", containerd.WithNewSpec(
		oci.WithDefaultSpec(), oci.WithRootFSPath(rootfs), oci.WithProcessArgs("/bin/sh", "-c", script),
		oci.WithMounts([]specs.Mount{bind(mount.Path(), "/shared"), bind(clone.Path(), "/snapshot")}),
	))
	must(err)
	defer func() { must(container.Delete(ctx)) }()
	stdin, input := io.Pipe()
	output, stdout := io.Pipe()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(stdin, stdout, os.Stderr)))
	must(err)
	defer func() {
		_, err := task.Delete(ctx, containerd.WithProcessKill)
		must(err)
	}()
	ended, err := task.Wait(ctx)
	must(err)
	must(task.Start(ctx))
	line := make([]byte, len("ready\n"))
	_, err = io.ReadFull(output, line)
	must(err)

	taken := e.Restart(buildkit.Held{Mounts: []cachemount.Record{mount.Record()}, Clones: []generation.Record{clone.Record()}})
	_, err = io.WriteString(input, "go\n")
	must(err)
	if status := <-ended; status.ExitCode() != 0 {
		t.Fatalf("the job ended with %d, %v", status.ExitCode(), status.Error())
	}
	mount, clone = taken.Mounts[0], taken.Clones[0]
	check := func(dir string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "f"))
		if got := strings.Fields(string(text)); err != nil || strings.Join(got, " ") != "before after" {
			t.Errorf("%s has %q, %v", dir, text, err)
		}
	}
	check(mount.Path())
	must(mount.Release(ctx))
	_, _, err = clone.Publish(ctx)
	must(err)
	next, err := e.Generations().Clone(ctx, "p/snapshot", "next")
	must(err)
	must(next.Mount())
	check(next.Path())
	must(next.Discard(ctx))
}

func bind(from, to string) specs.Mount {
	return specs.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"rbind", "rw"}}
}
