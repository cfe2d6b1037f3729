package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// detectShell execs the best shell there is.
const detectShell = `for shell in /usr/local/bin/bash /usr/bin/bash /bin/bash /usr/local/bin/sh /usr/bin/sh /bin/sh /busybox/sh; do
	[ -x $shell ] && exec $shell
done
echo shell not found
exit 1
`

// terminateAll sends SIGTERM to all processes of a container but the first.
const terminateAll = `for P in $(cd /proc && ls -rvd [0-9]*); do
	[ $$ -ne $P ] && [ $P -ne 1 ] && kill -TERM $P 2>/dev/null
done
`

// ExitError is the exit of a script with a code other than 0.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// Run starts the container of a stage and gives it the script.
func (e *Executor) Run(ctx context.Context, predefined bool, script string) error {
	id, err := e.container(ctx, predefined)
	if err != nil {
		return err
	}
	err = e.start(ctx, id, script)
	if ctx.Err() != nil {
		err = errors.Join(err, e.remove(context.WithoutCancel(ctx), id))
	}
	return err
}

// container is the helper's or the build's, made when first needed and again
// when it is gone.
func (e *Executor) container(ctx context.Context, predefined bool) (string, error) {
	kind, image, id, binds := "build", e.image(), &e.build, e.binds
	if predefined {
		kind, image, id, binds = "predefined", e.config.HelperImage, &e.helper, append(e.program(), e.binds...)
	}
	if *id != "" {
		if _, err := e.docker.ContainerInspect(ctx, *id, client.ContainerInspectOptions{}); err == nil {
			return *id, nil
		}
	}
	found, err := e.inspectImage(ctx, image)
	if err == nil && predefined {
		found, err = e.inspectImage(ctx, found.ID) // gitlab-runner looks again
	}
	if err != nil {
		return "", err
	}
	name := e.unique + "-" + kind
	if err := e.remove(ctx, name); err != nil {
		return "", err
	}
	config := &container.Config{
		Image: reference(found), Hostname: e.name(), Cmd: []string{"sh", "-c", detectShell}, Labels: e.labels(kind),
		AttachStdin: true, AttachStdout: true, AttachStderr: true, OpenStdin: true, StdinOnce: true,
	}
	for _, v := range e.job.Variables() {
		value := v.Value
		if v.File {
			value = e.job.TmpDir() + "/" + v.Key
		}
		config.Env = append(config.Env, v.Key+"="+value)
	}
	if predefined {
		config.Entrypoint = []string{}
	} else {
		config.Entrypoint, config.User = e.job.Image.Entrypoint, e.job.Image.ExecutorOptions.Docker.User
	}
	created, err := e.docker.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name: name, Config: config,
		HostConfig: &container.HostConfig{
			Binds: binds, NetworkMode: container.NetworkMode(e.config.NetworkMode),
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
			LogConfig:     container.LogConfig{Type: "json-file"},
		},
		NetworkingConfig: e.endpoint([]string{"build", name}),
	})
	if err != nil {
		return "", fmt.Errorf("creating container: %w", err)
	}
	*id, e.containers = created.ID, append(e.containers, created.ID)
	_, err = e.docker.ContainerInspect(ctx, created.ID, client.ContainerInspectOptions{})
	return created.ID, err
}

// endpoint is a container's on the network of its mode, which is docker's
// default where none is set.
func (e *Executor) endpoint(aliases []string) *network.NetworkingConfig {
	mode, settings := container.NetworkMode(e.config.NetworkMode), &network.EndpointSettings{}
	if mode == "" {
		mode = network.NetworkDefault
	}
	if mode.IsUserDefined() {
		settings.Aliases = aliases
	}
	return &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{string(mode): settings}}
}

func (e *Executor) start(ctx context.Context, id, script string) error {
	attached, err := e.docker.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return fmt.Errorf("attaching to container: %w", err)
	}
	defer attached.Close()
	if _, err := e.docker.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return fmt.Errorf("starting container: %w", err)
	}
	ended := make(chan struct{}, 2)
	go func() {
		_, _ = stdcopy.StdCopy(e.log, e.log, attached.Reader) // its end, for whatever reason, is the script's
		attached.Close()
		ended <- struct{}{}
	}()
	go func() {
		_, err := io.Copy(attached.Conn, strings.NewReader(script))
		_ = attached.CloseWrite()
		if err != nil {
			ended <- struct{}{}
		}
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	ctx = context.WithoutCancel(ctx)
	if id == e.build {
		e.terminate(ctx, id)
	}
	return e.wait(ctx, id, func() {
		_, _ = e.docker.ContainerStop(ctx, id, client.ContainerStopOptions{}) // wait tries again
	})
}

// terminate asks the processes of a build container to end. The container may
// long have ended itself, which then is the daemon's answer.
func (e *Executor) terminate(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	exec, err := e.docker.ExecCreate(ctx, id, client.ExecCreateOptions{
		AttachStdout: true, AttachStderr: true, Cmd: []string{"sh", "-c", terminateAll},
	})
	if err != nil {
		return
	}
	attached, err := e.docker.ExecAttach(ctx, exec.ID, client.ExecAttachOptions{})
	if err != nil {
		return
	}
	defer attached.Close()
	defer context.AfterFunc(ctx, attached.Close)()
	_, _ = io.Copy(io.Discard, attached.Reader)
}

// wait waits for a container's end and calls stop, unless nil, now and every
// second.
func (e *Executor) wait(ctx context.Context, id string, stop func()) error {
	waiting := e.docker.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	if stop != nil {
		stop()
	}
	for {
		select {
		case <-time.After(time.Second):
			if stop != nil {
				stop()
			}
		case err := <-waiting.Error:
			if err == nil || errdefs.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("waiting for container: %w", err)
		case result := <-waiting.Result:
			if result.StatusCode != 0 {
				return &ExitError{int(result.StatusCode)}
			}
			return nil
		}
	}
}

// remove disconnects a container from its networks, which takes a look at all
// of them, and removes it.
func (e *Executor) remove(ctx context.Context, id string) error {
	networks, err := e.docker.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return fmt.Errorf("listing networks: %w", err)
	}
	for _, n := range networks.Items {
		inspected, err := e.docker.NetworkInspect(ctx, n.ID, client.NetworkInspectOptions{})
		if err != nil {
			continue
		}
		if _, connected := inspected.Network.Containers[id]; connected {
			_, _ = e.docker.NetworkDisconnect(ctx, n.ID, client.NetworkDisconnectOptions{Container: id, Force: true})
		}
	}
	_, err = e.docker.ContainerRemove(ctx, id, client.ContainerRemoveOptions{RemoveVolumes: true, Force: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("removing container: %w", err)
	}
	return nil
}
