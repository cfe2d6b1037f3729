// Package docker makes the calls that gitlab-runner's docker executor makes of
// a docker daemon, in its order, to compare with: volumes prepared by a
// container each, one helper container started for each predefined stage, one
// build container started for each user stage, the script on its stdin, stop,
// wait, remove. It knows neither services nor pulls: images have to be there.
package docker

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"gitlab.com/berth-ci/berth/test/runner/job"
)

// Command is the runner's program in the helper container.
const Command = "/usr/bin/gitlab-runner-helper"

const (
	buildsDir      = "/builds"
	cacheDir       = "/cache"
	cleanupTimeout = 5 * time.Minute
)

// Config chooses daemon and images.
type Config struct {
	Host        string   // unix:///…; empty for the default
	Image       string   // of jobs without one
	HelperImage string   // with git and a shell; the runner's program is mounted in it
	Volumes     []string // paths that outlive the job
	NetworkMode string   // empty for the default, a bridge
}

// Executor runs one job.
type Executor struct {
	config Config
	job    *job.Job
	log    io.Writer
	say    func(string)

	docker     *client.Client
	unique     string // per job
	binds      []string
	temporary  []string // volumes
	containers []string
	helper     string
	build      string
}

// New returns an executor whose containers write to log; say takes lines of
// the executor's own.
func New(config Config, j *job.Job, log io.Writer, say func(string)) *Executor {
	return &Executor{config: config, job: j, log: log, say: say}
}

// Prepare makes everything but the containers of the stages.
func (e *Executor) Prepare(ctx context.Context) error {
	if len(e.job.Services) > 0 {
		return fmt.Errorf("services are not part of the comparison: %w", errdefs.ErrNotImplemented)
	}
	opts := []client.Opt{client.FromEnv}
	if e.config.Host != "" {
		opts = append(opts, client.WithHost(e.config.Host))
	}
	var err error
	if e.docker, err = client.New(opts...); err != nil {
		return fmt.Errorf("creating docker client: %w", err)
	}
	if _, err := e.docker.Info(ctx, client.InfoOptions{}); err != nil {
		return fmt.Errorf("getting docker info: %w", err)
	}
	if _, err := e.docker.ServerVersion(ctx, client.ServerVersionOptions{}); err != nil {
		return fmt.Errorf("getting server version info: %w", err)
	}
	if e.job.Hostname, err = os.Hostname(); err != nil {
		return err
	}
	if err := e.job.SetDirs(buildsDir, cacheDir, false); err != nil {
		return err
	}
	e.unique = e.name() + "-" + strings.ToLower(rand.Text()[:16])
	e.say("Using Docker executor with image " + e.image() + " ...")
	helper, err := e.inspectImage(ctx, e.config.HelperImage)
	if err != nil {
		return err
	}
	for _, volume := range e.config.Volumes {
		if err := e.addVolume(ctx, helper.ID, volume, true); err != nil {
			return err
		}
	}
	if err := e.addVolume(ctx, helper.ID, buildsDir, e.job.Settings().Strategy == job.StrategyFetch); err != nil {
		return err
	}
	for _, image := range []string{e.config.HelperImage, e.image()} {
		if _, err := e.inspectImage(ctx, image); err != nil {
			return err
		}
	}
	return nil
}

func (e *Executor) image() string {
	if e.job.Image.Name != "" {
		return e.job.Image.Name
	}
	return e.config.Image
}

func (e *Executor) name() string {
	return strings.ToLower(fmt.Sprintf("runner-%s-project-%d-concurrent-%d",
		e.job.Runner.Name(), e.job.JobInfo.ProjectID, e.job.ProjectConcurrentID))
}

// inspectImage is what the pull policy if-not-present does to a local image.
func (e *Executor) inspectImage(ctx context.Context, image string) (client.ImageInspectResult, error) {
	found, err := e.docker.ImageInspect(ctx, image)
	if err != nil {
		return found, fmt.Errorf("inspecting image %q: %w", image, err)
	}
	return found, nil
}

// reference names an image to make a container of.
func reference(found client.ImageInspectResult) string {
	if len(found.RepoDigests) > 0 {
		return found.RepoDigests[0]
	}
	return found.ID
}

// addVolume binds a volume at a path, after a container has made the path
// writable for all users.
func (e *Executor) addVolume(ctx context.Context, helper, path string, reusable bool) error {
	name := e.unique
	if reusable {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s-%d-%d", e.job.Runner.Token, e.job.JobInfo.ProjectID, e.job.ProjectConcurrentID))
		name = fmt.Sprintf("runner-%x", sum[:16])
	}
	name = fmt.Sprintf("%s-cache-%x", name, md5.Sum([]byte(path)))
	if p := e.job.GitInfo.Protected; p != nil && *p {
		name += "-protected"
	}
	created, err := e.docker.VolumeCreate(ctx, client.VolumeCreateOptions{Name: name, Labels: e.labels("cache")})
	if err != nil {
		return fmt.Errorf("creating docker volume: %w", err)
	}
	if !reusable {
		e.temporary = append(e.temporary, name)
	}
	if err := e.openVolume(ctx, helper, created.Volume.Name); err != nil {
		return fmt.Errorf("set volume permissions: %w", err)
	}
	e.binds = append(e.binds, created.Volume.Name+":"+path)
	return nil
}

func (e *Executor) openVolume(ctx context.Context, helper, volume string) (err error) {
	const at = "/gitlab-runner-cache-init"
	c, err := e.docker.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name: volume + "-set-permission-" + strings.ToLower(rand.Text()[:16]),
		Config: &container.Config{
			Image: helper, Entrypoint: []string{}, Cmd: []string{Command, "cache-init", at}, Labels: e.labels("cache-init"),
		},
		HostConfig: &container.HostConfig{
			LogConfig: container.LogConfig{Type: "json-file"}, Binds: append(e.program(), volume+":"+at),
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		_, errRemove := e.docker.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true})
		err = errors.Join(err, errRemove)
	}()
	if _, err := e.docker.ContainerStart(ctx, c.ID, client.ContainerStartOptions{}); err != nil {
		return err
	}
	return e.wait(ctx, c.ID, nil)
}

// program binds this program, where gitlab-runner's own helper image has one.
func (e *Executor) program() []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	return []string{self + ":" + Command + ":ro"}
}

func (e *Executor) labels(kind string) map[string]string {
	const prefix = "com.gitlab.gitlab-runner."
	return map[string]string{
		prefix + "managed":     "true",
		prefix + "type":        kind,
		prefix + "job.id":      fmt.Sprint(e.job.ID),
		prefix + "job.ref":     e.job.GitInfo.Ref,
		prefix + "job.sha":     e.job.GitInfo.SHA,
		prefix + "pipeline.id": fmt.Sprint(e.job.JobInfo.PipelineID),
		prefix + "project.id":  fmt.Sprint(e.job.JobInfo.ProjectID),
	}
}

// Cleanup removes containers, all at once, then volumes.
func (e *Executor) Cleanup() error {
	if e.docker == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(e.containers))
	for i, id := range e.containers {
		wg.Go(func() { errs[i] = e.remove(ctx, id) })
	}
	wg.Wait()
	for _, volume := range e.temporary {
		if _, err := e.docker.VolumeRemove(ctx, volume, client.VolumeRemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("removing volume: %w", err))
		}
	}
	return errors.Join(append(errs, e.docker.Close())...)
}
