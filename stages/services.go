package stages

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sync/errgroup"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// healthPortVariable names the port that tells whether a service is up.
const healthPortVariable = "HEALTHCHECK_TCP_PORT"

func serviceName(n int) string { return fmt.Sprintf("%s-%d", container.RoleService, n) }

// startServices starts all services and waits until they answer. One that
// does not is reported and the job goes on, as under the docker executor.
func (b *berth) startServices(ctx context.Context) error {
	if len(b.services) == 0 {
		return nil
	}
	var reports sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for i := range b.services {
		if b.admission.Grant.Services[i].Docker {
			fmt.Printf("Service %s is the docker of this node, which is up and running.\n", b.admission.Grant.Services[i].Name)
			continue
		}
		group.Go(func() error {
			c := b.serviceConfig(i)
			fmt.Printf("Starting service %s...\n", b.admission.Grant.Services[i].Name)
			task, err := container.Start(ctx, b.client, c)
			if err != nil {
				return startFailure(c, err)
			}
			reason := b.awaitHealth(ctx, i, task)
			if reason == "" || ctx.Err() != nil {
				return context.Cause(ctx)
			}
			reports.Lock()
			defer reports.Unlock()
			fmt.Printf("\n*** WARNING: Service %s probably didn't start properly.\n\n%s\n\n", c.Hostname, reason)
			fmt.Printf("Service container logs:\n")
			b.showLog(c)
			fmt.Printf("\n*********\n\n")
			return nil
		})
	}
	fmt.Println("Waiting for services to be up and running...")
	return group.Wait()
}

func (b *berth) serviceConfig(i int) container.Config {
	grant, service := b.admission.Grant.Services[i], b.payload.Services[i]
	c := b.config(serviceName(i), b.services[i], b.admission.Network.Services[i].Netns)
	c.Role = container.RoleService
	c.Entrypoint = b.call.ExpandAll(service.Entrypoint)
	c.Command = b.call.ExpandAll(service.Command)
	c.User = grant.User
	c = b.withDocker(c)
	c.Env = append(c.Env, b.serviceEnvironment(service)...)
	c.Security.Privileged = grant.Privileged
	c.Mounts = append(c.Mounts, b.nameMounts(serviceName(i))...)
	return c
}

// serviceEnvironment is the job's public variables, then the service's own,
// which may refer to them.
func (b *berth) serviceEnvironment(service executor.PayloadImage) []string {
	values := map[string]string{}
	var env []string
	for _, v := range b.payload.Variables {
		if v.Public && !v.File {
			env = append(env, v.Key+"="+b.call.Variable(v.Key))
		}
	}
	for _, v := range service.Variables {
		values[v.Key] = v.Value
	}
	expand := func(key string) string {
		if value, ok := values[key]; ok {
			return value
		}
		return b.call.Variable(key)
	}
	for _, v := range service.Variables {
		if !v.Raw {
			v.Value = os.Expand(v.Value, expand)
		}
		env = append(env, v.Key+"="+v.Value)
	}
	return env
}

// awaitHealth waits until one of the service's ports takes a connection, and
// says why when it does not in time. A service that exposes none is taken to
// be up.
func (b *berth) awaitHealth(ctx context.Context, i int, task containerd.Task) string {
	ports, err := b.healthPorts(ctx, i)
	if err != nil {
		return err.Error()
	}
	if len(ports) == 0 {
		return ""
	}
	limit := time.Duration(b.admission.Grant.Profile.WaitForServices)
	if limit <= 0 {
		return ""
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return fmt.Sprintf("Health check error: %v", err)
	}
	deadline := time.After(limit)
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	endpoint := b.admission.Network.Services[i]
	for {
		var last error
		for _, port := range ports {
			if last = dialFrom(ctx, b.admission.Network.Netns, net.JoinHostPort(endpoint.Address.String(), strconv.Itoa(port))); last == nil {
				return ""
			}
		}
		select {
		case <-retry.C:
		case status := <-exited:
			completeLog(ctx, task)
			return fmt.Sprintf("Health check error: the service exited with status %d before it listened on TCP port %s", status.ExitCode(), joinPorts(ports))
		case <-deadline:
			return fmt.Sprintf("Health check error: no answer on TCP port %s within %v: %v; set %s in the service's variables if it listens elsewhere", joinPorts(ports), limit, last, healthPortVariable)
		case <-ctx.Done():
			return ""
		}
	}
}

func joinPorts(ports []int) string {
	text := make([]string, len(ports))
	for i, p := range ports {
		text[i] = strconv.Itoa(p)
	}
	return strings.Join(text, ", ")
}

func (b *berth) healthPorts(ctx context.Context, i int) (ports []int, err error) {
	env := b.serviceEnvironment(b.payload.Services[i])
	slices.Reverse(env) // later entries win
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, healthPortVariable+"="); ok {
			port, err := strconv.ParseUint(value, 10, 16)
			if err != nil || port == 0 {
				return nil, fmt.Errorf("%s=%q: expected a port between 1 and 65535", healthPortVariable, value)
			}
			return []int{int(port)}, nil
		}
	}
	image, err := b.services[i].Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the image's ports: %w", err)
	}
	for exposed := range image.Config.ExposedPorts {
		number, protocol, _ := strings.Cut(exposed, "/")
		if port, err := strconv.ParseUint(number, 10, 16); err == nil && (protocol == "" || protocol == "tcp") {
			ports = append(ports, int(port))
		}
	}
	slices.Sort(ports)
	return ports, nil
}

// dialFrom tries a TCP connection from within a network namespace.
func dialFrom(ctx context.Context, netns, address string) error {
	return namespace.Do(netns, func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// serviceLog is a service's log and how much of it the job log has.
type serviceLog struct {
	Name  string `json:"name"`
	Path  string `json:"path"`
	Shown int64  `json:"shown"`
}

// show passes on the complete lines that were written since the last time.
func (l *serviceLog) show() {
	f, err := os.Open(l.Path)
	if err != nil {
		return
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, l.Shown)
		end := bytes.LastIndexByte(buf[:n], '\n') + 1
		if end == 0 && n == len(buf) {
			end = n // a line longer than the buffer
		}
		if end == 0 {
			return
		}
		for line := range bytes.Lines(buf[:end]) {
			fmt.Fprintf(os.Stderr, "[service:%s] %s\n", l.Name, bytes.TrimRight(line, "\r\n"))
		}
		l.Shown += int64(end)
		if err != nil {
			return
		}
	}
}
