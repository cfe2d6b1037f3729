package builds_test

import (
	"context"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"google.golang.org/grpc"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/builds"
	testimages "gitlab.com/berth-ci/berth/test/images"
)

// shared is the node's image store, as docker and jobs see it.
func (f *fixture) shared() (*containerd.Client, context.Context) {
	f.Helper()
	c, err := containerd.New(f.Config.Address)
	f.must(err)
	f.Cleanup(func() { c.Close() })
	return c, namespaces.WithNamespace(f.Context(), f.Config.Namespace)
}

func imageExport(name string) []client.ExportEntry {
	return []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "unpack": "true"}}}
}

// An image that is built is at once, unpacked, in the node's store, and what the next build is FROM.
func TestImageStays(t *testing.T) {
	f := newFixture(t)
	c, ctx := f.shared()
	j := f.job("job", "p1")
	const name = "docker.io/library/app:1"
	for kind, name := range map[string]string{client.ExporterImage: name, "moby": "app:2"} {
		_, err := j.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN echo " + kind + " > /built", exports: []client.ExportEntry{{
			Type: kind, Attrs: map[string]string{"name": name, "unpack": "true"}}}})
		f.must(err)
	}
	for _, name := range []string{name, "docker.io/library/app:2"} {
		img, err := c.GetImage(ctx, name)
		f.must(err)
		if unpacked, err := img.IsUnpacked(ctx, buildkit.Snapshotter); err != nil || !unpacked {
			t.Errorf("%s is unpacked: %v, %v", name, unpacked, err)
		}
		if img.Labels()[builds.LabelNamespace] != "p1" {
			t.Errorf("labels %v", img.Labels())
		}
	}
	for _, mode := range []string{"local", "default"} {
		log, err := f.job("next "+mode, "p1").build(request{dockerfile: "FROM app:1\nRUN cat /built # " + mode, attrs: map[string]string{"image-resolve-mode": mode}})
		if err != nil || !strings.Contains(log, "image") {
			t.Errorf("%s: %q, %v", mode, log, err)
		}
	}
	// Again by the same name.
	_, err := f.job("again", "p1").build(request{dockerfile: "FROM " + f.busybox() + "\nRUN echo again > /built", exports: imageExport(name)})
	f.check(err)
}

// A name is whose it is: no build changes what it means to others, nor finds what it means to them.
func TestNamesOfOthers(t *testing.T) {
	f := newFixture(t)
	c, ctx := f.shared()
	victim, evil := f.job("victim", trusted), f.job("evil", untrusted)
	_, err := victim.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN echo good > /f", exports: imageExport("docker.io/library/app:latest")})
	f.must(err)
	app, err := c.ImageService().Get(ctx, "docker.io/library/app:latest")
	f.must(err)
	_, err = c.ImageService().Create(ctx, images.Image{Name: "docker.io/library/golang:1", Target: app.Target}) // pulled by docker, say
	f.must(err)
	for _, name := range []string{"docker.io/library/app:latest", "docker.io/library/golang:1", "docker.io/library/mine:1,docker.io/library/app:latest"} {
		for _, kind := range []string{client.ExporterImage, "moby"} {
			_, err := evil.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN echo evil > /f", exports: []client.ExportEntry{{Type: kind, Attrs: map[string]string{"name": name}}}})
			if err == nil || !strings.Contains(err.Error(), "was not built here") {
				t.Errorf("%s %s: %v", kind, name, err)
			}
		}
	}
	for _, name := range []string{"app:latest", "golang:1"} {
		img, err := c.ImageService().Get(ctx, "docker.io/library/"+name)
		if err != nil || img.Target.Digest != app.Target.Digest {
			t.Errorf("%s is %v, %v", name, img.Target.Digest, err)
		}
		for _, mode := range []string{"local", "default", "pull"} {
			if _, err := evil.build(request{dockerfile: "FROM " + name, attrs: map[string]string{"image-resolve-mode": mode}}); err == nil {
				t.Errorf("FROM %s, %s, of others", name, mode)
			}
		}
	}
	// Where the caller says by which names images are kept.
	mapped := f.job("mapped", untrusted, func(j *builds.Job) {
		j.Image = func(name string) (string, error) {
			if strings.Contains(name, "forbidden") {
				return "", errdefs.ErrPermissionDenied
			}
			return strings.Replace(name, "docker.io/library/", "berth.invalid/"+untrusted+"/", 1), nil
		}
	})
	_, err = mapped.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN echo mapped > /f", exports: imageExport("docker.io/library/app:latest")})
	f.must(err)
	if _, err := c.ImageService().Get(ctx, "berth.invalid/"+untrusted+"/app:latest"); err != nil {
		t.Error(err)
	}
	log, err := mapped.build(request{dockerfile: "FROM app:latest\nRUN cat /f", attrs: map[string]string{"image-resolve-mode": "local"}})
	if err != nil || !strings.Contains(log, "mapped") {
		t.Errorf("%q, %v", log, err)
	}
	if _, err := mapped.build(request{dockerfile: "FROM " + f.busybox(), exports: imageExport("docker.io/library/forbidden")}); err == nil {
		t.Error("a forbidden name")
	}
}

// login is a client's.
type login struct {
	auth.UnimplementedAuthServer
	host string
}

func (l login) Register(s *grpc.Server) { auth.RegisterAuthServer(s, l) }

func (l login) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	if r.Host != l.host {
		return &auth.CredentialsResponse{}, nil
	}
	return &auth.CredentialsResponse{Username: testimages.Username, Secret: testimages.Password}, nil
}

// What one pulled by a password is not there for who has none, by name, by digest, nor by what it was built into.
func TestPrivateImage(t *testing.T) {
	f := newFixture(t)
	victim, evil := f.job("victim", trusted), f.job("evil", untrusted)
	image := f.registry.Private(testimages.Busybox)
	password := []session.Attachable{login{host: f.registry.PrivateAddress}}
	r := request{dockerfile: "FROM " + image + "\nRUN echo ran", attach: password}
	log, err := victim.build(r)
	if err != nil || !strings.Contains(log, "ran") {
		t.Fatalf("%q, %v", log, err)
	}
	ref, err := name.ParseReference(image, name.Insecure)
	f.must(err)
	desc, err := remote.Head(ref, remote.WithAuth(&authn.Basic{Username: testimages.Username, Password: testimages.Password}))
	f.must(err)
	_, tag, _ := strings.Cut(image, "/test/")
	byDigest := strings.TrimSuffix(image, ":1") + "@" + desc.Digest.String()
	for _, from := range []string{image, byDigest, image + "@" + desc.Digest.String()} {
		for _, mode := range []string{"default", "local", "pull"} {
			_, err := evil.build(request{dockerfile: "FROM " + from + "\nRUN echo ran", attrs: map[string]string{"image-resolve-mode": mode}})
			if err == nil || !strings.Contains(err.Error(), "401") && !strings.Contains(err.Error(), "authoriz") {
				t.Errorf("%s, %s: %v", from, mode, err)
			}
		}
	}
	t.Run("tokens", func(t *testing.T) {
		// BuildKit finds a registry's token by the client's word for its session.
		own := f.job("own", trusted)
		_, err := own.build(r)
		f.check(err)
		_, err = own.build(request{dockerfile: r.dockerfile})
		if err == nil {
			t.Errorf("a session without a password reads %s", tag)
		}
	})
}
