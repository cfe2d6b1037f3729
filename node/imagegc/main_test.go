package imagegc

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
	"gitlab.com/berth-ci/berth/test/containerdtest"
)

var (
	address string // of containerd
	missing string // why there is none
)

func TestMain(m *testing.M) {
	if work := os.Getenv(childEnv); work != "" {
		if err := child(work); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if missing = containerdtest.Missing(); missing != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "berth-imagegc-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var stop func()
	if address, stop, err = containerdtest.Start(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stop()
	return m.Run()
}

const snapshotter = "overlayfs"

// fixture is a keeper with a containerd namespace of its own.
type fixture struct {
	*testing.T
	client *containerd.Client
	keeper *Keeper

	mu   sync.Mutex
	jobs []api.Job
}

// setJobs says which are on the node.
func (f *fixture) setJobs(jobs ...api.Job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs = jobs
}

func (f *fixture) onNode() []api.Job {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.jobs
}

func newFixture(t *testing.T, p Policy) *fixture {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	client, err := containerd.New(address, containerd.WithDefaultNamespace(t.Name()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	f := &fixture{T: t, client: client}
	f.keeper = f.open(p)
	return f
}

// open makes a keeper, as berthd does when it starts.
func (f *fixture) open(p Policy) *Keeper {
	return New(Config{
		Client: f.client, Snapshotter: snapshotter, Disk: f.TempDir(), Policy: p,
		Jobs:     f.onNode,
		Projects: func() (map[string]string, error) { return map[string]string{"p7-0123": "group/web"}, nil },
	})
}

// made is what an image consists of.
type made struct {
	images.Image
	blobs []digest.Digest
	chain string // its last snapshot
}

// image makes an image of layers with a file each, unpacked, last used so long
// ago; never by Berth if that is negative.
func (f *fixture) image(name string, ago time.Duration, layers ...string) made {
	f.Helper()
	ctx, done, err := f.client.WithLease(f.Context())
	require.NoError(f, err)
	defer func() { require.NoError(f, done(ctx)) }()
	var m made
	put := func(media string, text []byte, labels map[string]string) ocispec.Descriptor {
		desc := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(text), Size: int64(len(text))}
		err := content.WriteBlob(ctx, f.client.ContentStore(), desc.Digest.String(), bytes.NewReader(text), desc, content.WithLabels(labels))
		require.NoError(f, err)
		m.blobs = append(m.blobs, desc.Digest)
		return desc
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	refs := map[string]string{}
	config := ocispec.Image{Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Labels = map[string]string{"name": name}
	for n, layer := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(f, w.WriteHeader(&tar.Header{Name: layer, Mode: 0o644, Size: 1 << 16, Format: tar.FormatPAX}))
		_, err := w.Write(bytes.Repeat([]byte{byte(n)}, 1<<16))
		require.NoError(f, err)
		require.NoError(f, w.Close())
		desc := put(ocispec.MediaTypeImageLayer, b.Bytes(), nil)
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
		refs["containerd.io/gc.ref.content.l."+strconv.Itoa(n)] = desc.Digest.String()
	}
	m.chain = identity.ChainID(config.RootFS.DiffIDs).String()
	text, err := json.Marshal(config)
	require.NoError(f, err)
	manifest.Config = put(ocispec.MediaTypeImageConfig, text, nil)
	refs["containerd.io/gc.ref.content.config"] = manifest.Config.Digest.String()
	text, err = json.Marshal(manifest)
	require.NoError(f, err)
	m.Image = images.Image{Name: name, Target: put(ocispec.MediaTypeImageManifest, text, refs)}
	if ago >= 0 {
		m.Labels = lastuse.Put(nil, name, time.Now().Add(-ago))
	}
	if _, err = f.client.ImageService().Create(ctx, m.Image); errdefs.IsAlreadyExists(err) {
		_, err = f.client.ImageService().Update(ctx, m.Image)
	}
	require.NoError(f, err)
	require.NoError(f, containerd.NewImage(f.client, m.Image).Unpack(ctx, snapshotter))
	return m
}

// age makes an image seem to be long unused.
func (f *fixture) age(name string) {
	f.Helper()
	i, err := f.client.ImageService().Get(f.Context(), name)
	require.NoError(f, err)
	i.Labels = lastuse.Put(nil, name, time.Now().Add(-15*day))
	_, err = f.client.ImageService().Update(f.Context(), i, "labels."+lastuse.Label)
	require.NoError(f, err)
}

// lease makes a lease that holds something; it goes with the test.
func (f *fixture) lease(id string, labels map[string]string, resources ...leases.Resource) leases.Lease {
	f.Helper()
	l, err := f.client.LeasesService().Create(f.Context(), leases.WithID(id), leases.WithLabels(labels))
	require.NoError(f, err)
	for _, r := range resources {
		require.NoError(f, f.client.LeasesService().AddResource(f.Context(), l, r))
	}
	return l
}

// whole tells whether all of an image is there, none of it, or a part.
func (f *fixture) whole(m made) string {
	f.Helper()
	there, parts := 0, len(m.blobs)+1
	for _, d := range m.blobs {
		_, err := f.client.ContentStore().Info(f.Context(), d)
		if !errdefs.IsNotFound(err) {
			require.NoError(f, err)
			there++
		}
	}
	if _, err := f.client.SnapshotService(snapshotter).Stat(f.Context(), m.chain); !errdefs.IsNotFound(err) {
		require.NoError(f, err)
		there++
	}
	switch there {
	case parts:
		return "whole"
	case 0:
		return "gone"
	}
	return fmt.Sprintf("%d of %d", there, parts)
}

// names are those that there are.
func (f *fixture) names() string {
	f.Helper()
	list, err := f.client.ImageService().List(f.Context())
	require.NoError(f, err)
	var all []string
	for _, i := range list {
		all = append(all, i.Name)
	}
	return strings.Join(all, " ")
}

func (f *fixture) collect(k *Keeper) string {
	f.Helper()
	removed, err := k.Collect(f.Context())
	require.NoError(f, err)
	var all []string
	for _, i := range removed {
		all = append(all, i.Name)
	}
	return strings.Join(all, " ")
}

// childEnv has the test binary be a berthd that collects.
const childEnv = "BERTH_TEST_COLLECT"

type childWork struct{ Address, Namespace string }

func child(text string) error {
	var work childWork
	if err := json.Unmarshal([]byte(text), &work); err != nil {
		return err
	}
	client, err := containerd.New(work.Address, containerd.WithDefaultNamespace(work.Namespace))
	if err != nil {
		return err
	}
	defer client.Close()
	k := New(Config{
		Client: client, Snapshotter: snapshotter, Disk: filepath.Dir(work.Address), Policy: Policy{MaxAge: 14 * day},
		Jobs: func() []api.Job { return nil }, Projects: func() (map[string]string, error) { return nil, nil },
	})
	_, err = k.Collect(context.Background())
	return err
}
