package proxy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/docker/registry"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
	"gitlab.com/berth-ci/berth/node/network/namespace"
)

// Images come and go by berthd rather than dockerd: dockerd would give them the
// names that archives and jobs say, for all to see.

func parseAgain(name string) (reference.Named, error) { return names.Parse(name) }

// login is what came with a call for its registry.
func (c *call) login() (registrytypes.AuthConfig, error) {
	var auth registrytypes.AuthConfig
	header := c.r.Header.Get("X-Registry-Auth")
	if header == "" {
		return auth, nil
	}
	text, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		text, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(header, "="))
	}
	if err == nil && len(text) > 0 {
		err = json.Unmarshal(text, &auth)
	}
	if err != nil {
		return auth, invalid("invalid X-Registry-Auth header") // without what it holds
	}
	return auth, nil
}

// createImage is POST /images/create: a pull, or an import.
func createImage(c *call) error {
	if c.query.Get("fromImage") == "" {
		return importImage(c)
	}
	name := c.query.Get("fromImage")
	if tag := c.query.Get("tag"); tag != "" {
		if strings.Contains(tag, ":") {
			name += "@" + tag
		} else if named, err := reference.ParseNormalizedNamed(name); err == nil {
			name = reference.TrimNamed(named).Name() + ":" + tag
		}
	}
	named, err := names.Parse(name)
	if err != nil {
		return err
	}
	login, err := c.login()
	if err != nil {
		return err
	}
	say := c.messages()
	if err := c.pull(named, c.query.Get("platform"), login, func(m registry.Message) { say(m) }); err != nil {
		if !c.begun {
			return err
		}
		say(registry.Failure(c.outerText(err.Error())))
	}
	return nil
}

// registries are reached from the job's network.
func (p *Proxy) registries() registry.Job {
	n := p.job.Network
	return registry.Job{
		Dialer: namespace.Dialer{Path: n.Netns, Server: netip.AddrPortFrom(n.Gateway, nameServer)},
		Own:    []netip.Prefix{n.Subnet, p.Subnets},
	}
}

// nameServer is the port of the job's.
const nameServer = 53

// pull gets an image. What a registry gives to all has its plain name. What it
// gives to a login is the project's, and so is what comes from where the job
// may have put it itself.
func (c *call) pull(named reference.Named, platform string, login registrytypes.AuthConfig, say func(registry.Message)) error {
	from, err := c.Registry.Repository(c.ctx, named, c.registries(), login)
	if err != nil {
		return err
	}
	defer from.Close()
	p := registry.Pull{Stored: named.String(), Platform: platform}
	anonymous := registry.Anonymous(login) && from.Authentic
	if !anonymous {
		if p.Stored, err = c.job.Scope.Own(named); err != nil {
			return err
		}
		p.Labels = map[string]string{}
		if from.Authentic {
			p.Labels[names.OriginLabel] = names.OriginRegistry
		}
		p.Labels = c.labels(p.Labels, p.Stored)
	}
	c.Images.Expect(c.job.Key, p.Stored)
	if p.Labels, err = lastuse.Pulled(c.ctx, c.Client.ImageService(), p.Stored, p.Labels); err != nil {
		return err
	}
	if err := from.Pull(c.ctx, p, say); err != nil {
		return err
	}
	if anonymous {
		// A name of the project's own would hide what was pulled.
		for _, stored := range c.job.Scope.Candidates(named) {
			if stored == named.String() {
				break
			}
			if _, err := c.Client.ImageService().Get(c.ctx, stored); errdefs.IsNotFound(err) {
				continue
			} else if err != nil {
				return fmt.Errorf("look up image %s: %w", named, err)
			}
			pulled, err := c.Client.ImageService().Get(c.ctx, named.String())
			if err != nil {
				return fmt.Errorf("look up image %s: %w", named, err)
			}
			_, err = c.store(c.ctx, named, images.Image{Target: pulled.Target}, names.OriginRegistry)
			return err
		}
	}
	return c.show(named)
}

// importImage is POST /images/create with an archive of a file system.
func importImage(c *call) error {
	if src := c.query.Get("fromSrc"); src != "-" {
		return refuse("import from %q: the node fetches nothing for jobs; pipe the archive to `docker import -`", src)
	}
	query := url.Values{"fromSrc": {"-"}}
	for _, key := range []string{"message", "changes", "platform"} {
		if v, ok := c.query[key]; ok {
			query[key] = v
		}
	}
	var named reference.Named
	stored := ""
	if c.query.Get("repo") != "" {
		var err error
		if named, err = repoTag(c.query); err != nil {
			return err
		}
		if stored, err = c.job.Scope.Own(named); err != nil {
			return err
		}
		query.Set("repo", stored)
	}
	res, err := c.send(http.MethodPost, "/images/create", query, stream{c.r.Body, "application/x-tar"})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	say := c.messages()
	lines := json.NewDecoder(res.Body)
	for {
		var line map[string]any
		if err := lines.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read the docker daemon's answer: %w", err)
		}
		if id := text(line, "status"); named == nil && strings.HasPrefix(id, "sha256:") {
			if err := c.addImage(id); err != nil {
				return err
			}
			if err := c.labelDangling(c.ctx, id); err != nil {
				return err
			}
		}
		say(line)
	}
	if named != nil {
		return c.made(named, stored)
	}
	return nil
}

// loadImages is POST /images/load.
func loadImages(c *call) error {
	plain, err := compression.DecompressStream(c.r.Body)
	if err != nil {
		return invalid("read archive: %v", err)
	}
	defer plain.Close()
	matcher := platforms.All
	if p, ok := c.query["platform"]; ok {
		one, err := platformsOf(p)
		if err != nil {
			return err
		}
		matcher = platforms.Any(one...)
	}
	ctx, done, err := c.Client.WithLease(c.ctx)
	if err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it expires
	// Not by the client's Import: it takes names from archives as they are.
	lease, _ := leases.FromContext(ctx)
	store := holding(c.Client.ContentStore(), c.job.Key+"-"+lease+"-")
	index, err := archive.ImportIndex(ctx, store, plain)
	if err != nil {
		return invalid("load images: %v", err)
	}
	all, err := c.unpackIndex(ctx, store, index, matcher)
	if err != nil {
		return invalid("load images: %v", err)
	}
	c.finish()
	say := c.messages()
	for _, target := range all {
		name := target.Annotations[images.AnnotationImageName]
		target.Annotations = nil
		line, err := c.loaded(name, images.Image{Target: target})
		if err != nil {
			return err
		}
		if err := containerd.NewImageWithPlatform(c.Client, images.Image{Name: "loaded", Target: target}, platforms.Default()).Unpack(ctx, c.Registry.Snapshotter); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("unpack image %s: %w", name, err)
		}
		say(registry.Message{Stream: line + "\n"})
	}
	if !c.begun {
		c.begin(http.StatusOK)
	}
	return nil
}

// unpackIndex makes what is in an archive hold together, and lists its images.
func (c *call) unpackIndex(ctx context.Context, store *held, index ocispec.Descriptor, matcher platforms.Matcher) ([]ocispec.Descriptor, error) {
	text, err := content.ReadBlob(ctx, store, index)
	if err != nil {
		return nil, err
	}
	var list ocispec.Index
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	children := images.SetChildrenLabels(store, images.FilterPlatforms(images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		below, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, nil // of a platform that the archive leaves out
		}
		for _, child := range below {
			if err := c.inArchive(ctx, store, child.Digest); err != nil {
				return nil, err
			}
		}
		return below, err
	}), matcher))
	var all []ocispec.Descriptor
	for _, m := range list.Manifests {
		if _, err := store.Info(ctx, m.Digest); errdefs.IsNotFound(err) {
			continue
		}
		if err := c.inArchive(ctx, store, m.Digest); err != nil {
			return nil, err
		}
		if err := images.Walk(ctx, children, m); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// inArchive refuses what is on the node but neither in the archive nor in
// anything else that the job sees.
func (c *call) inArchive(ctx context.Context, store *held, d digest.Digest) error {
	if store.has(d) {
		return nil
	}
	if _, err := store.Info(ctx, d); errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	if seen, err := c.sees(ctx, d); err != nil || seen {
		return err
	}
	return fmt.Errorf("%s is not in the archive", d)
}

// loaded names an image of an archive as it says, for the job's project alone,
// and says so.
func (c *call) loaded(name string, image images.Image) (string, error) {
	id := image.Target.Digest.String()
	if name == "" {
		image.Name, image.Labels = dangling+id, c.labels(nil, dangling+id)
		if err := c.addImage(id); err != nil {
			return "", err
		}
		if _, err := c.Client.ImageService().Create(c.ctx, image); err != nil && !errdefs.IsAlreadyExists(err) {
			return "", fmt.Errorf("store image %s: %w", id, err)
		}
		return "Loaded image ID: " + id, nil
	}
	named, err := names.Parse(name)
	if err != nil {
		return "", err
	}
	if _, err := c.store(c.ctx, named, image, ""); err != nil {
		return "", err
	}
	return "Loaded image: " + reference.FamiliarString(named), nil
}

func platformsOf(written []string) (all []ocispec.Platform, err error) {
	for _, text := range written {
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			if p, err = platforms.Parse(text); err != nil {
				return nil, invalid("platform %q: %v", text, err)
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// saveImages is GET /images/get and /images/{image}/get.
func saveImages(c *call) error {
	refs := c.query["names"]
	if len(c.params) > 0 {
		refs = c.params[:1]
	}
	if len(refs) == 0 {
		return invalid("no image specified")
	}
	options := []archive.ExportOpt{archive.WithSkipNonDistributableBlobs(), archive.WithSkipMissing(c.Client.ContentStore())}
	if p, ok := c.query["platform"]; ok {
		one, err := platformsOf(p)
		if err != nil {
			return err
		}
		options = append(options, archive.WithPlatform(platforms.Any(one...)))
	} else {
		options = append(options, archive.WithAllPlatforms())
	}
	ctx, done, err := c.Client.WithLease(c.ctx)
	if err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it expires
	for _, ref := range refs {
		all, err := c.savedAs(ref)
		if err != nil {
			return err
		}
		for _, one := range all {
			if err := c.hold(ctx, one.target); err != nil {
				return err
			}
			record, err := c.recordOf(one)
			if err != nil {
				return err
			}
			if one.named == nil {
				options = append(options, archive.WithManifest(record.Target))
				continue
			}
			options = append(options, archive.WithManifest(record.Target, one.named.String()))
		}
	}
	c.w.Header().Set("Content-Type", "application/x-tar")
	c.begin(http.StatusOK)
	return archive.Export(ctx, c.Client.ContentStore(), c.w, options...)
}

// hold keeps an image for as long as the lease of ctx.
func (c *call) hold(ctx context.Context, target digest.Digest) error {
	id, _ := leases.FromContext(ctx)
	if err := c.Client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: target.String(), Type: "content"}); err != nil {
		return fmt.Errorf("hold image %s: %w", target, err)
	}
	return nil
}

// savedAs finds what a name stands for: without a tag, all tags of it.
func (c *call) savedAs(ref string) ([]found, error) {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) && !imageID.MatchString(ref) {
		all, err := c.tagsOf(named)
		if err != nil || len(all) > 0 {
			return all, err
		}
	}
	one, err := c.used(ref)
	return []found{one}, err
}

// tagsOf finds all tags of a repository that the job sees.
func (c *call) tagsOf(repository reference.Named) (all []found, err error) {
	view, err := c.view(c.ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(view)) {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil || named.Name() != repository.Name() {
			continue
		}
		if _, ok := named.(reference.Tagged); ok {
			all = append(all, c.foundImage(named, view[name]))
		}
	}
	return all, nil
}

// pushImage is POST /images/{image}/push.
func pushImage(c *call) error {
	repository, err := reference.ParseNormalizedNamed(c.params[0])
	if err != nil {
		return invalid("invalid reference format: %v", err)
	}
	login, err := c.login()
	if err != nil {
		return err
	}
	if tag := c.query.Get("tag"); tag != "" {
		if repository, err = reference.WithTag(reference.TrimNamed(repository), tag); err != nil {
			return invalid("invalid reference format: %v", err)
		}
	}
	var platform *ocispec.Platform
	if p := c.query.Get("platform"); p != "" {
		one, err := platformsOf([]string{p})
		if err != nil {
			return err
		}
		platform = &one[0]
	}
	to, err := c.Registry.Repository(c.ctx, repository, c.registries(), login)
	if err != nil {
		return err
	}
	defer to.Close()
	var all []found
	if reference.IsNameOnly(repository) {
		if all, err = c.tagsOf(repository); err != nil {
			return err
		}
		if len(all) == 0 {
			return missing("An image does not exist locally with the tag: %s", reference.FamiliarName(repository))
		}
	}
	say := c.messages()
	say(registry.Message{Status: fmt.Sprintf("The push refers to repository [%s]", repository.Name())})
	if len(all) == 0 {
		one, err := c.used(repository.String())
		if err != nil {
			say(registry.Failure("tag does not exist: " + reference.FamiliarString(repository)))
			return nil
		}
		all = []found{one}
	}
	for _, one := range all {
		tagged, ok := one.named.(reference.NamedTagged)
		if !ok || one.record == nil {
			say(registry.Failure("cannot push a digest reference"))
			return nil
		}
		if err := to.Push(c.ctx, registry.Push{
			Tag: tagged.Tag(), Target: one.record.Target, Platform: platform,
		}, func(m registry.Message) { say(m) }); err != nil {
			say(registry.Failure(c.outerText(err.Error())))
			return nil
		}
	}
	return nil
}

// search is GET /images/search. It is the one thing that dockerd asks a
// registry for, from the node: so it is Docker Hub alone that is asked.
func search(c *call) error {
	first, _, more := strings.Cut(c.query.Get("term"), "/")
	if more && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return refuse("search in other registries than Docker Hub")
	}
	return through(c)
}

// distribution is GET /distribution/{image}/json.
func distribution(c *call) error {
	named, err := names.Parse(c.params[0])
	if err != nil {
		return err
	}
	login, err := c.login()
	if err != nil {
		return err
	}
	at, err := c.Registry.Repository(c.ctx, named, c.registries(), login)
	if err != nil {
		return err
	}
	defer at.Close()
	about, err := at.Inspect(c.ctx)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, about)
}

// auth is POST /auth.
func auth(c *call) error {
	var body registrytypes.AuthConfig
	if err := c.decode(&body); err != nil {
		return err
	}
	token, err := c.Registry.Login(c.ctx, c.registries(), body)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, registrytypes.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}
