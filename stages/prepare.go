package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/stages/image"
)

// Prepare makes the job's berth: admission, images, services, helper and
// build container. What a failed prepare leaves is removed by the cleanup
// call that gitlab-runner makes next, or by berthd's reaper.
func (s *Stage) Prepare(ctx context.Context) error {
	payload, err := executor.ReadPayload(s.Call.PayloadFile)
	if err != nil {
		return err
	}
	runner, err := findRunner(s.Call.PayloadFile)
	if err != nil {
		return err
	}
	if abandoned(os.Stdout) {
		return errors.New("gitlab-runner has ended: nobody waits for the job")
	}
	st, err := s.admit(ctx, payload, runner)
	if err != nil {
		return err
	}
	client, err := connect(st.Admission.Containerd)
	if err != nil {
		return err
	}
	defer client.Close()

	b := &berth{
		call:      s.Call,
		payload:   payload,
		admission: st.Admission,
		client:    client,
	}
	if b.node, err = os.Hostname(); err != nil {
		return fmt.Errorf("read the node's name: %w", err)
	}
	if b.runner, err = runnerBinary(runner, st.Admission.Dirs.Runners); err != nil {
		return err
	}
	ctx = leases.WithLease(ctx, st.Admission.Lease)
	if err := b.pull(ctx); err != nil {
		return err
	}
	if err := b.start(ctx, st); err != nil {
		return err
	}
	st.CacheEnv = st.Admission.Caches.Env
	return s.save(st)
}

// admit asks for a berth. The state file is there before the request, so
// that cleanup knows that there may be something to release.
func (s *Stage) admit(ctx context.Context, payload *executor.Payload, runner api.Process) (*state, error) {
	request := executor.NewRequest(s.Call, payload)
	self, err := api.FindProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	st := &state{Job: request.Job.Key()}
	if err := s.save(st); err != nil {
		return nil, err
	}
	st.Admission, err = s.Berthd.Admit(ctx, api.AdmitRequest{
		Profile: s.Profile,
		Request: request,
		Runner:  runner,
		Caller:  self,
		TempDir: s.Call.TempDir,
	}, func(line string) { fmt.Println(line) })
	if errdefs.IsAlreadyExists(err) {
		// Another runner's job has this key: it is not ours to release.
		return nil, errors.Join(err, os.Remove(s.statePath()))
	}
	if err != nil {
		return nil, err
	}
	return st, s.save(st)
}

// berth is a job's place on the node while prepare makes it.
type berth struct {
	call      *executor.Call
	payload   *executor.Payload
	admission *api.Admission
	client    *containerd.Client
	runner    string // binary of gitlab-runner
	node      string // host name

	build, helper containerd.Image
	services      []containerd.Image
}

// pull gets all images of the job, at once.
func (b *berth) pull(ctx context.Context) error {
	dirs := b.admission.Dirs
	puller := &image.Puller{
		Client:      b.client,
		HostsDir:    dirs.Registries,
		LockDir:     dirs.Locks,
		Snapshotter: b.admission.Containerd.Snapshotter,
	}
	keychain, err := b.keychain()
	if err != nil {
		return err
	}
	grant := b.admission.Grant
	b.services = make([]containerd.Image, len(grant.Services))
	group, ctx := errgroup.WithContext(ctx)
	job := b.payload.Identity()
	scope := &names.Scope{Project: job.ProjectKey(), Protected: job.Protected}
	get := func(g executor.ImageGrant, scope *names.Scope, to *containerd.Image) {
		group.Go(func() (err error) {
			*to, err = puller.Pull(ctx, image.Request{
				Ref:          g.Name,
				Platform:     g.Platform,
				Policies:     pullPolicies(g.PullPolicies),
				Keychain:     keychain,
				Scope:        scope,
				RegistryOnly: g.Privileged,
				Log:          os.Stdout,
			})
			return pullFailure(err)
		})
	}
	get(grant.Build, scope, &b.build)
	get(grant.Helper, nil, &b.helper) // which jobs have no say in
	for i, service := range grant.Services {
		if !service.Docker {
			get(service, scope, &b.services[i])
		}
	}
	return group.Wait()
}

// keychain holds the job's registry logins in the order that GitLab
// documents: DOCKER_AUTH_CONFIG, the node's own, the payload's.
func (b *berth) keychain() (*image.Keychain, error) {
	var sources []image.Source
	if auth := b.call.Variable("DOCKER_AUTH_CONFIG"); auth != "" {
		sources = append(sources, image.Source{
			Name:           "DOCKER_AUTH_CONFIG",
			Config:         []byte(auth),
			AllowedHelpers: b.admission.Grant.Profile.CredentialHelpers,
			// Set by the job, or in the runner's own config by its operator?
			AnyHelper: !b.payload.Has("DOCKER_AUTH_CONFIG"),
		})
	}
	if file := b.admission.Dirs.DockerConfig; file != "" {
		config, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read the node's registry logins: %w", err)
		}
		sources = append(sources, image.Source{Name: file, Config: config, AnyHelper: true, Shared: true})
	}
	payload := image.Source{Name: "job payload"}
	for _, c := range b.payload.Credentials {
		if c.Type == "registry" {
			payload.Logins = append(payload.Logins, image.Login{Registry: c.URL, Username: c.Username, Password: c.Password})
		}
	}
	return image.NewKeychain(append(sources, payload)...), nil
}

func pullPolicies(names []string) []image.Policy {
	policies := make([]image.Policy, len(names))
	for i, name := range names {
		policies[i] = image.Policy(name) // checked by the profile
	}
	return policies
}

// pullFailure tells the job's failures from those that may pass: a registry
// that is down is worth a retry, an image that does not exist is not.
func pullFailure(err error) error {
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err) || errdefs.IsFailedPrecondition(err) {
		return &executor.BuildFailure{Err: err}
	}
	return err
}

// start starts everything: services first, since an entrypoint of the build
// image may want them, the helper meanwhile.
func (b *berth) start(ctx context.Context, st *state) error {
	if err := b.writeNames(); err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.startServices(groupCtx) })
	group.Go(func() (err error) {
		st.Helper, _, err = b.startAgent(groupCtx, b.helperConfig())
		return err
	})
	if len(b.services) == 0 {
		group.Go(func() error { return b.startBuild(groupCtx, st) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(b.services) > 0 {
		if err := b.startBuild(ctx, st); err != nil {
			return err
		}
	}
	st.ServiceLogs = make([]serviceLog, len(b.services))
	for i, service := range b.admission.Grant.Services {
		st.ServiceLogs[i] = serviceLog{Name: slices.Concat(service.Aliases, []string{service.Name})[0], Path: b.logPath(serviceName(i))}
	}
	for _, m := range b.admission.Caches.Mounts {
		// What nobody has written to belongs to the first who may.
		if m.Fresh {
			if err := os.Lchown(m.Source, st.User.UID, st.User.GID); err != nil {
				return fmt.Errorf("give a cache to the job's user: %w", err)
			}
		}
	}
	if builds := b.admission.Builds; builds.Dir != "" {
		if err := os.Lchown(filepath.Join(builds.Dir, builds.Socket), st.User.UID, st.User.GID); err != nil {
			return fmt.Errorf("give the build socket to the job's user: %w", err)
		}
	}
	return os.Chown(b.admission.Dirs.Builds, st.User.UID, st.User.GID)
}

func (b *berth) startBuild(ctx context.Context, st *state) error {
	process, user, err := b.startAgent(ctx, b.buildConfig())
	if err != nil {
		return err
	}
	st.Build, st.User = process, user
	return nil
}

func (b *berth) logPath(container string) string {
	return filepath.Join(b.admission.Dirs.Job, container+".log")
}
