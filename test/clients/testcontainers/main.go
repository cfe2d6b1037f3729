// Command testcontainers is a test suite as people write them with
// Testcontainers, whose tests are run in a job. It prints what it sees, and
// ends with 1 at the first thing that is not as it should be.
//
// With "die" it leaves all that it made to be reaped.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// Images by the names that they have at Docker Hub; a mirror is where the
// environment says.
const (
	web     = "web:1"
	busybox = "busybox:1"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	run := suite
	if len(os.Args) > 1 && os.Args[1] == "die" {
		run = die
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// lines collects what a container logs.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Accept(log testcontainers.Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(log.Content))
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(strings.Join(l.all, ""), text)
}

func suite(ctx context.Context) (err error) {
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return fmt.Errorf("make provider: %w", err)
	}
	defer provider.Close()
	if err := provider.Health(ctx); err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	net, err := network.New(ctx)
	if err != nil {
		return fmt.Errorf("make network: %w", err)
	}
	defer func() { err = errors.Join(err, net.Remove(context.WithoutCancel(ctx))) }()

	logged := &lines{}
	server, err := testcontainers.Run(ctx, web,
		testcontainers.WithEnv(map[string]string{"GREETING": "welcome"}),
		testcontainers.WithExposedPorts("8080/tcp"),
		network.WithNetwork([]string{"shop"}, net),
		testcontainers.WithFiles(testcontainers.ContainerFile{Reader: strings.NewReader("a file"), ContainerFilePath: "/etc/made", FileMode: 0o640}),
		testcontainers.WithLogConsumers(logged),
		testcontainers.WithTmpfs(map[string]string{"/scratch": "rw"}),
		testcontainers.WithWaitStrategy(
			wait.ForLog("Serving welcome"),
			wait.ForListeningPort("8080/tcp"),
			wait.ForHTTP("/").WithPort("8080/tcp"),
			wait.ForExec([]string{"test", "-e", "/srv/index.html"}),
			wait.ForFile("/etc/made"),
		),
	)
	defer func() { err = errors.Join(err, end(server)) }()
	if err != nil {
		return fmt.Errorf("run %s: %w", web, err)
	}
	if err := visit(ctx, server, "welcome"); err != nil {
		return err
	}
	for !logged.has("Serving welcome") {
		if ctx.Err() != nil {
			return errors.New("the log's consumer has not got the log")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := server.CopyToContainer(ctx, []byte("copied\n"), "/srv/copied", 0o644); err != nil {
		return fmt.Errorf("copy to container: %w", err)
	}
	copied, err := server.CopyFileFromContainer(ctx, "/srv/copied")
	if err != nil {
		return fmt.Errorf("copy from container: %w", err)
	}
	if text, err := io.ReadAll(copied); err != nil || string(text) != "copied\n" {
		return fmt.Errorf("copied %q: %w", text, err)
	}
	code, out, err := server.Exec(ctx, []string{"sh", "-c", "cat /etc/made; exit 3"}, exec.Multiplexed())
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if text, err := io.ReadAll(out); err != nil || code != 3 || string(text) != "a file" {
		return fmt.Errorf("exec printed %q and ended with %d: %w", text, code, err)
	}

	// Others find it by its alias.
	client, err := testcontainers.Run(ctx, busybox, network.WithNetwork(nil, net),
		testcontainers.WithCmd("wget", "-q", "-O", "-", "http://shop:8080/copied"), testcontainers.WithWaitStrategy(wait.ForExit()))
	defer func() { err = errors.Join(err, end(client)) }()
	if err != nil {
		return fmt.Errorf("run %s: %w", busybox, err)
	}
	log, err := client.Logs(ctx)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if text, err := io.ReadAll(log); err != nil || !bytes.Contains(text, []byte("copied")) {
		return fmt.Errorf("the client printed %q: %w", text, err)
	}

	// After a restart it has another port.
	once := time.Duration(0)
	if err := server.Stop(ctx, &once); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := server.Start(ctx); err != nil {
		return fmt.Errorf("start again: %w", err)
	}
	if err := visit(ctx, server, "welcome"); err != nil {
		return err
	}

	// One that is built from a Dockerfile, of the image that a mirror has.
	base := os.Getenv("TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX") + "/" + busybox
	dir, err := os.MkdirTemp("", "context")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(dir+"/Dockerfile", []byte("FROM "+base+"\nARG WHAT\nRUN echo built of $WHAT >/made\nCMD cat /made\n"), 0o644); err != nil {
		return err
	}
	what := "parts"
	built, err := testcontainers.Run(ctx, "", testcontainers.WithDockerfile(testcontainers.FromDockerfile{
		Context: dir, BuildArgs: map[string]*string{"WHAT": &what},
	}), testcontainers.WithWaitStrategy(wait.ForLog("built of parts")))
	defer func() { err = errors.Join(err, end(built)) }()
	if err != nil {
		return fmt.Errorf("run what is built: %w", err)
	}
	fmt.Println("the suite has passed")
	return nil
}

// end ends a container at once: its first process may be deaf to signals.
func end(c testcontainers.Container) error {
	return testcontainers.TerminateContainer(c, testcontainers.StopTimeout(0))
}

// visit asks for the page at where the suite finds the container's port.
func visit(ctx context.Context, c testcontainers.Container, want string) error {
	at, err := c.PortEndpoint(ctx, "8080/tcp", "http")
	if err != nil {
		return fmt.Errorf("find port: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("visit: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || strings.TrimSpace(string(text)) != want {
		return fmt.Errorf("%s says %q: %w", at, text, err)
	}
	fmt.Printf("visited %s\n", at[:strings.LastIndex(at, ":")])
	return nil
}

// die makes things and leaves them.
func die(ctx context.Context) error {
	net, err := network.New(ctx)
	if err != nil {
		return fmt.Errorf("make network: %w", err)
	}
	c, err := testcontainers.Run(ctx, busybox, testcontainers.WithCmd("sleep", "1000"), network.WithNetwork(nil, net),
		testcontainers.WithMounts(testcontainers.ContainerMount{
			Source: testcontainers.DockerVolumeMountSource{Name: "left", VolumeOptions: &mount.VolumeOptions{Labels: testcontainers.GenericLabels()}},
			Target: "/data",
		}))
	if err != nil {
		return fmt.Errorf("run %s: %w", busybox, err)
	}
	fmt.Printf("left container %s\n", c.GetContainerID()[:12])
	os.Exit(3)
	return nil
}
