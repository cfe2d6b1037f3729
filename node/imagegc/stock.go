package imagegc

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
)

// BuildKit's leases: those of cache records, and temporary ones, which it keeps
// for an hour after a build. What they hold is no image in use (what builds use
// is noted by Use), though it does not become free with the image either.
const (
	flatLabel      = "containerd.io/gc.flat"
	temporaryLabel = "buildkit/lease.temporary"
)

// dockerID is the id of a docker container, and of the lease by which dockerd
// keeps its file system, whether it runs or not.
var dockerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// survey is what containerd has, as far as images are concerned.
type survey struct {
	client      *containerd.Client
	snapshotter string

	list      []images.Image
	blobs     map[digest.Digest]int64
	parents   map[string]string // of snapshots
	used      map[string]int64  // by snapshots, where it is known
	parts     map[digest.Digest]Parts
	manifests map[digest.Digest][]digest.Digest // of an image, itself included
	chains    map[digest.Digest][]string        // its snapshots to start from
	held      map[string]bool
	// holders by what they hold: a manifest, or a snapshot to start from.
	byManifest map[digest.Digest][]string
	byChain    map[string][]string
}

func blob(d digest.Digest) string { return "blob " + d.String() }
func snapshot(key string) string  { return "snapshot " + key }
func add(to []string, s string) []string {
	if slices.Contains(to, s) {
		return to
	}
	return append(to, s)
}

// takeStock looks at all that containerd has.
func takeStock(ctx context.Context, client *containerd.Client, snapshotter string) (*Stock, error) {
	s := &survey{
		client: client, snapshotter: snapshotter,
		blobs: map[digest.Digest]int64{}, parents: map[string]string{}, used: map[string]int64{},
		parts: map[digest.Digest]Parts{}, manifests: map[digest.Digest][]digest.Digest{}, chains: map[digest.Digest][]string{},
		held: map[string]bool{}, byManifest: map[digest.Digest][]string{}, byChain: map[string][]string{},
	}
	// The names first: what is used from here on has a newer note.
	var err error
	if s.list, err = client.ImageService().List(ctx); err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	err = client.ContentStore().Walk(ctx, func(i content.Info) error { s.blobs[i.Digest] = i.Size; return nil })
	if err != nil {
		return nil, fmt.Errorf("list content: %w", err)
	}
	err = client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		s.parents[i.Name] = i.Parent
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	for _, i := range s.list {
		if s.parts[i.Target.Digest] != nil {
			continue
		}
		s.parts[i.Target.Digest] = Parts{}
		if err := s.walk(ctx, i.Target.Digest, i.Target); err != nil {
			return nil, fmt.Errorf("measure image %s: %w", i.Name, err)
		}
	}
	if err := s.findHolders(ctx); err != nil {
		return nil, err
	}
	stock := &Stock{Parts: s.parts, Held: s.held}
	for _, i := range s.list {
		stock.Images = append(stock.Images, Image{
			Name: i.Name, Target: i.Target.Digest, Used: lastuse.Of(i).Truncate(time.Second), Ours: lastuse.Ours(i),
			Users: s.users(i.Target.Digest),
		})
	}
	stock.measure()
	return stock, nil
}

// walk adds a blob and what it refers to to the parts of an image. What is not
// there is of another platform, or is just being deleted.
func (s *survey) walk(ctx context.Context, of digest.Digest, desc ocispec.Descriptor) error {
	size, there := s.blobs[desc.Digest]
	if !there {
		return nil
	}
	s.parts[of][blob(desc.Digest)] = size
	store := s.client.ContentStore()
	if images.IsConfigType(desc.MediaType) {
		return s.unpacked(ctx, of, desc)
	}
	if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
		return nil
	}
	s.manifests[of] = append(s.manifests[of], desc.Digest)
	children, err := images.Children(ctx, store, desc)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := s.walk(ctx, of, child); err != nil {
			return err
		}
	}
	return nil
}

// unpacked adds the snapshots of an image by its configuration.
func (s *survey) unpacked(ctx context.Context, of digest.Digest, desc ocispec.Descriptor) error {
	text, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var config ocispec.Image
	if json.Unmarshal(text, &config) != nil {
		return nil // of something else than an image
	}
	chain := identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs))
	for n, id := range chain {
		key := id.String()
		if _, there := s.parents[key]; !there {
			continue
		}
		size, known := s.used[key]
		if !known {
			u, err := s.client.SnapshotService(s.snapshotter).Usage(ctx, key)
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			size, s.used[key] = u.Size, u.Size
		}
		s.parts[of][snapshot(key)] = size
		if n == len(chain)-1 {
			s.chains[of] = append(s.chains[of], key)
		}
	}
	return nil
}

// findHolders finds out what holds images: leases hold what jobs prepare, what
// is being pulled, and the containers of docker; what runs is a container of
// containerd.
func (s *survey) findHolders(ctx context.Context) error {
	starts := map[string]bool{}
	for _, keys := range s.chains {
		for _, key := range keys {
			starts[key] = true
		}
	}
	held, err := s.client.LeasesService().List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range held {
		resources, err := s.client.LeasesService().ListResources(ctx, l)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list what lease %s holds: %w", l.ID, err)
		}
		_, flat := l.Labels[flatLabel]
		_, temporary := l.Labels[temporaryLabel]
		cache := flat || temporary
		for _, r := range resources {
			switch kind, snapshotter, _ := strings.Cut(r.Type, "/"); {
			case kind == "content":
				s.held[blob(digest.Digest(r.ID))] = true
				if !cache {
					s.byManifest[digest.Digest(r.ID)] = add(s.byManifest[digest.Digest(r.ID)], leaseHolder(l))
				}
			case kind == "snapshots" && snapshotter == s.snapshotter:
				s.hold(r.ID)
				if !cache && !starts[r.ID] {
					s.holds(leaseHolder(l), s.parents[r.ID], starts)
				}
			}
		}
	}
	all, err := s.client.ContainerService().List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range all {
		if c.Snapshotter != s.snapshotter && c.Snapshotter != "" {
			continue
		}
		holder := c.Labels[container.JobLabel]
		if holder == "" {
			holder = "container " + short(c.ID)
		}
		s.hold(c.SnapshotKey)
		s.holds(holder, c.SnapshotKey, starts)
	}
	return nil
}

func short(id string) string {
	if dockerID.MatchString(id) {
		return id[:12]
	}
	return id
}

func leaseHolder(l leases.Lease) string {
	switch job := l.Labels[container.JobLabel]; {
	case job != "":
		return job
	case dockerID.MatchString(l.ID):
		return "container " + short(l.ID)
	}
	return "lease " + l.ID
}

// hold notes that a snapshot stays, with those below it.
func (s *survey) hold(key string) {
	for key != "" && !s.held[snapshot(key)] {
		s.held[snapshot(key)] = true
		key = s.parents[key]
	}
}

// holds notes who has the image that a snapshot is of, or was made upon.
func (s *survey) holds(holder, key string, starts map[string]bool) {
	for ; key != ""; key = s.parents[key] {
		if starts[key] {
			s.byChain[key] = add(s.byChain[key], holder)
			return
		}
	}
}

func (s *survey) users(target digest.Digest) (users []string) {
	for _, manifest := range append(s.manifests[target], target) {
		for _, holder := range s.byManifest[manifest] {
			users = add(users, holder)
		}
	}
	for _, key := range s.chains[target] {
		for _, holder := range s.byChain[key] {
			users = add(users, holder)
		}
	}
	return users
}
