// Package image brings the image of a job into containerd, unpacked, and says in the job log what it does.
//
// It decides by pull policy, finds credentials, resolves the image with them, and makes sure that however many
// processes of the node want one image at once, one of them fetches it. It does not decide which images or
// policies a job may use, and it knows nothing of containers.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/node/docker/names"
)

// Puller brings images into one containerd. It may be used by many goroutines, and by many processes that share
// LockDir.
type Puller struct {
	Client *client.Client

	// HostsDir is a tree of hosts.toml files in containerd's format (mirrors, certificate authorities); empty
	// stands for none.
	HostsDir string

	// LockDir holds a lock file per image being fetched. It is made when missing and best lies on a tmpfs.
	LockDir string

	// Snapshotter to unpack with; empty stands for containerd's default.
	Snapshotter string

	interval time.Duration // between two lines of progress; zero stands for every
}

// Request is one image that a job wants.
type Request struct {
	// Ref is the image as the job names it: alpine, alpine:3.20, registry.example.com/group/image@sha256:...
	Ref string

	// Platform such as linux/arm64; empty stands for the node's own.
	Platform string

	// Policies are tried in order until one yields the image; none stands for Always.
	Policies []Policy

	// Keychain holds the credentials; nil stands for none.
	Keychain *Keychain

	// Scope is where the job's own names are looked for first, and where an image goes that the registry gives to
	// the job's credentials alone; nil stands for plain names only.
	Scope *names.Scope
	// RegistryOnly leaves out images that jobs have made, whatever they call them.
	RegistryOnly bool
	// Log is the job log; nil discards.
	Log io.Writer
}

// Pull returns the image, present in containerd for the platform and unpacked. If ctx carries a lease, the lease
// holds all of the image from then on. The error has a class of errdefs, names image, registry and cause, says
// what to do, and tells no secret.
func (p *Puller) Pull(ctx context.Context, req Request) (client.Image, error) {
	j, err := p.begin(req)
	if err != nil {
		return nil, err
	}
	// What containerd's client tells its logger would end up in the job log.
	ctx = log.WithLogger(ctx, silent)

	policies := req.Policies
	if len(policies) == 0 {
		policies = []Policy{Always}
	}
	j.log.Printf("Using effective pull policy of %v for container image %s", policies, j.ref)
	for i, policy := range policies {
		if i > 0 {
			j.log.Printf("Attempt #%d: Trying %q pull policy", i+1, policy)
		}
		var img client.Image
		if img, err = j.get(ctx, policy); err == nil {
			j.announce(img)
			return img, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("pull image %s: %w", j.ref, context.Cause(ctx))
		}
		if len(policies) > 1 {
			j.log.Printf("WARNING: Failed to pull image with policy %q: %v", policy, err)
		}
	}
	if len(policies) > 1 {
		err = fmt.Errorf("no pull policy of %v gave the image: %w", policies, err)
	}
	return nil, err
}

var silent = func() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}()

// job is the work on one Request.
type job struct {
	*Puller
	ref      string // as the job wrote it
	named    reference.Named
	platform string // as the job wrote it
	matcher  platforms.MatchComparer
	keychain *Keychain
	scope    *names.Scope
	registry bool // no images that jobs have made
	log      *jobLog
}

func (p *Puller) begin(req Request) (*job, error) {
	named, err := parse(req.Ref)
	if err != nil {
		return nil, err
	}
	if reference.Domain(named) == names.Domain {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("image %s: names of %s are the node's own", req.Ref, names.Domain))
	}
	j := &job{
		Puller:   p,
		ref:      req.Ref,
		named:    named,
		platform: req.Platform,
		matcher:  platforms.Default(),
		keychain: req.Keychain,
		scope:    req.Scope,
		registry: req.RegistryOnly,
		log:      newJobLog(req.Log),
	}
	if j.keychain == nil {
		j.keychain = NewKeychain()
	}
	if req.Platform != "" {
		platform, err := platforms.Parse(req.Platform)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
				"image %s: platform %q is not one: %v; write it as linux/amd64 or linux/arm64/v8", req.Ref, req.Platform, err))
		}
		j.matcher = platforms.Only(platform)
	}
	return j, nil
}

// get yields the image by one policy.
func (j *job) get(ctx context.Context, policy Policy) (client.Image, error) {
	if policy == Always {
		return j.fetch(ctx)
	}
	found, err := j.find(ctx, "", j.candidates()...)
	if err != nil {
		return nil, err
	}
	if found.image != nil {
		j.log.Printf("Using locally found image version due to %q pull policy", policy)
		return j.unpacked(ctx, found)
	}
	if policy == Never {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf(
			"image %s: pull policy %q, and %s; pull the image on the node or choose policy %q",
			j.ref, policy, j.absence(found), IfNotPresent))
	}
	if len(found.others) > 0 {
		j.log.Printf("Image %s: %s", j.ref, j.absence(found))
	}
	return j.fetch(ctx)
}

// announce says which image the job got, as gitlab-runner does.
func (j *job) announce(img client.Image) {
	digest := img.Target().Digest
	j.log.Printf("Using docker image %s for %s with digest %s@%s ...",
		digest, j.ref, reference.FamiliarName(j.named), digest)
}

func (j *job) wanted() string {
	if j.platform != "" {
		return j.platform
	}
	return platforms.FormatAll(platforms.DefaultSpec())
}

func (p *Puller) snapshotter() string {
	if p.Snapshotter != "" {
		return p.Snapshotter
	}
	return defaults.DefaultSnapshotter
}

// lease returns a context with a lease: the caller's, or one that release ends.
func (p *Puller) lease(ctx context.Context) (_ context.Context, release func() error, _ error) {
	ctx, done, err := p.Client.WithLease(ctx)
	if err != nil {
		return ctx, nil, fmt.Errorf("create lease: %w", err)
	}
	return ctx, func() error {
		// A cancelled pull must not leave its lease.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := done(ctx); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return fmt.Errorf("delete lease: %w", err)
		}
		return nil
	}, nil
}
