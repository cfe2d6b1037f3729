package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/agent"
	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// buildConfig is the container of the job's own scripts.
func (b *berth) buildConfig() container.Config {
	c := b.config(container.RoleBuild, b.build, b.admission.Network.Netns)
	c.Agent, c.AgentProgram = true, executablePath()
	c.Entrypoint = b.call.ExpandAll(b.payload.Image.Entrypoint)
	c.User = b.admission.Grant.Build.User
	if builds := b.admission.Builds; builds.Dir != "" {
		c.Mounts = append(c.Mounts, container.Bind(builds.Dir, agent.RunDir, "ro"))
		c.Env = append(c.Env, "BUILDKIT_HOST=unix://"+agent.RunDir+"/"+builds.Socket)
	}
	c = b.withDocker(c)
	// For the image's entrypoint; scripts export them themselves.
	c.Env = append(c.Env, environment(b.call.Variables())...)
	for _, m := range b.admission.Caches.Mounts {
		c.Mounts = append(c.Mounts, cacheMount(m))
	}
	c.Security.Privileged = b.admission.Grant.Build.Privileged
	c.Mounts = append(c.Mounts, b.nameMounts(container.RoleBuild)...)
	return c
}

// helperConfig is the container of the runner's own scripts. It runs as root
// to act for the user of the build container.
func (b *berth) helperConfig() container.Config {
	c := b.config(container.RoleHelper, b.helper, b.admission.Network.Netns)
	c.Agent, c.AgentProgram = true, executablePath()
	c.Entrypoint = []string{""}
	c.User = "0:0"
	c.Security.KeepCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"}
	c.PathPrefix = agent.BinDir
	// The job log says where it runs: "Running on NODE...".
	c.Hostname = b.node
	c.Mounts = append(c.Mounts, container.Bind(b.runner, agent.BinDir+"/gitlab-runner", "ro"))
	c.Mounts = append(c.Mounts, b.nameMounts(container.RoleHelper)...)
	return c
}

// config is what all containers of the job have in common.
func (b *berth) config(name string, image containerd.Image, netns string) container.Config {
	a := b.admission
	return container.Config{
		ID:          container.ID(a.Job, name),
		Job:         a.Job,
		Role:        name,
		Image:       image,
		Snapshotter: a.Containerd.Snapshotter,
		Env:         environment(a.Grant.Profile.Environment),
		GPUs:        b.gpus(name),
		Hostname:    name,
		Profile:     a.Grant.Profile,
		Limits:      a.Grant.Limits,
		Cgroup:      a.Cgroup,
		Netns:       netns,
		Mounts: []specs.Mount{
			container.Follow(container.Bind(a.Dirs.Builds, buildsDir, "rw")),
			container.Bind(a.Dirs.Cache, cacheDir, "rw"),
		},
		Log: b.logPath(name),
	}
}

func cacheMount(m api.CacheMount) specs.Mount {
	mode := "rw"
	if m.ReadOnly {
		mode = "ro"
	}
	bind := container.Bind(m.Source, m.Target, mode)
	if m.Late {
		return container.Follow(bind)
	}
	return bind
}

func environment(variables map[string]string) []string {
	env := make([]string, 0, len(variables))
	for key, value := range variables {
		env = append(env, key+"="+value)
	}
	return env
}

// executablePath is berth itself, which is also the agent.
func executablePath() string {
	path, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return path
}

// patience is how long an entrypoint may take before the job log says what
// is waited for.
const patience = 10 * time.Second

// startAgent starts a container and waits until its agent answers, which is
// when the image's entrypoint has done its work.
func (b *berth) startAgent(ctx context.Context, c container.Config) (process, agent.User, error) {
	task, err := container.Start(ctx, b.client, c)
	if err != nil {
		return process{}, agent.User{}, startFailure(c, err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return process{}, agent.User{}, fmt.Errorf("wait for task %s: %w", c.ID, err)
	}
	main, err := api.FindProcess(int(task.Pid()))
	if err != nil {
		return process{}, agent.User{}, b.entrypointFailure(ctx, c, task, <-exited)
	}
	late := time.After(patience)
	retry := time.NewTicker(2 * time.Millisecond)
	defer retry.Stop()
	for {
		a, err := agent.Connect(ctx, main.PID)
		if err == nil {
			defer a.Close()
			if a.Shell == "" {
				return process{}, agent.User{}, executor.Failf("image %s has neither bash nor sh, so no script can run in it: use an image with a shell", c.Image.Name())
			}
			b.showLog(c)
			return process{Process: main, Container: c.ID}, a.User, nil
		}
		select {
		case <-retry.C:
		case status := <-exited:
			return process{}, agent.User{}, b.entrypointFailure(ctx, c, task, status)
		case <-late:
			fmt.Printf("Waiting for the entrypoint of image %s to start a shell...\n", c.Image.Name())
		case <-ctx.Done():
			return process{}, agent.User{}, context.Cause(ctx)
		}
	}
}

// entrypointFailure is the job's failure, with what the entrypoint said.
func (b *berth) entrypointFailure(ctx context.Context, c container.Config, task containerd.Task, status containerd.ExitStatus) error {
	completeLog(ctx, task)
	b.showLog(c)
	return executor.Failf("the entrypoint of image %s ended with status %d before it started a shell: it must run the command that it is given; `image: {name: …, entrypoint: [\"\"]}` leaves it out", c.Image.Name(), status.ExitCode())
}

// completeLog waits until the output of a task that has ended is in its log.
// Only when a task is deleted does containerd wait for that.
func completeLog(ctx context.Context, task containerd.Task) {
	if _, err := task.Delete(ctx); err != nil {
		warn(ctx, "berth: the output of container %s may be cut short: %v", task.ID(), err)
	}
}

// startFailure tells what the job's configuration has brought about from
// what is the node's fault. runc reports both as text.
func startFailure(c container.Config, err error) error {
	text := err.Error()
	for _, sign := range []string{"exec: \"", "exec format error", "no users found", "no groups found", "user \"", "unable to find user", "names no program"} {
		if strings.Contains(text, sign) {
			return executor.Failf("start image %s: %w", c.Image.Name(), err)
		}
	}
	return err
}

// showLog passes on what a container's main process has printed so far.
func (b *berth) showLog(c container.Config) {
	f, err := os.Open(c.Log)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = io.Copy(os.Stdout, io.LimitReader(f, 1<<20))
}

// writeNames writes each container's hosts, hostname and resolv.conf. They
// are plain files of its own, which jobs may change.
func (b *berth) writeNames() error {
	names := []string{container.RoleBuild, container.RoleHelper}
	for i := range b.admission.Grant.Services {
		names = append(names, serviceName(i))
	}
	for _, name := range names {
		dir := b.nameDir(name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make name files: %w", err)
		}
		hostname := name
		if name == container.RoleHelper {
			hostname = b.node
		}
		for file, content := range map[string]string{
			"hosts":       b.hosts(name),
			"hostname":    hostname + "\n",
			"resolv.conf": b.resolvConf(),
		} {
			path := filepath.Join(dir, file)
			if err := errors.Join(os.WriteFile(path, []byte(content), 0o644), os.Chmod(path, 0o644)); err != nil {
				return fmt.Errorf("make name files: %w", err)
			}
		}
	}
	return nil
}

func (b *berth) nameDir(name string) string {
	return filepath.Join(b.admission.Dirs.Job, "names", name)
}

func (b *berth) nameMounts(name string) (mounts []specs.Mount) {
	for _, file := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, container.Bind(filepath.Join(b.nameDir(name), file), "/etc/"+file, "rw"))
	}
	return mounts
}

// hosts holds the fixed names of the job, so that they resolve without a
// question; the nameserver knows them too.
func (b *berth) hosts(self string) string {
	var h strings.Builder
	fmt.Fprintf(&h, "127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n")
	n, grant := b.admission.Network, b.admission.Grant
	line := func(address string, names ...string) { fmt.Fprintf(&h, "%s\t%s\n", address, strings.Join(names, " ")) }
	build := []string{container.RoleBuild}
	if self == container.RoleHelper {
		build = append(build, b.node)
	}
	line(n.Address.String(), build...)
	for i, service := range grant.Services {
		names := service.Aliases
		if self == serviceName(i) {
			names = append(names[:len(names):len(names)], self)
		}
		if len(names) > 0 {
			line(n.Services[i].Address.String(), names...)
		}
	}
	for _, extra := range grant.Profile.ExtraHosts {
		if name, address, ok := strings.Cut(extra, ":"); ok {
			line(address, name)
		}
	}
	return h.String()
}

func (b *berth) resolvConf() string {
	var r strings.Builder
	fmt.Fprintf(&r, "nameserver %s\n", b.admission.Network.Address)
	if search := b.admission.Grant.Profile.DNSSearch; len(search) > 0 {
		fmt.Fprintf(&r, "search %s\n", strings.Join(search, " "))
	}
	// Without, service names of one label would be tried in search domains first.
	r.WriteString("options ndots:0\n")
	return r.String()
}
