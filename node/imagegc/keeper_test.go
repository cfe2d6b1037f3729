package imagegc

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
	"gitlab.com/berth-ci/berth/stages/image"
)

var twoWeeks = Policy{MaxAge: 14 * day, MinAge: time.Hour}

const mine = "berth.invalid/p7-0123/protected/docker.io/library/"

// TestCollect has one of each kind of use beside an image that nobody has used.
func TestCollect(t *testing.T) {
	f := newFixture(t, twoWeeks)
	ctx := t.Context()
	long := 15 * day
	old := f.image(mine+"old:1", long, "base", "old")
	base := f.image("docker.io/library/base:1", 13*day, "base")
	his := f.image("docker.io/library/operators:1", -1, "operators")
	kept := []made{base, his}

	// A job's container, which runs or not.
	running := f.image(mine+"running:1", long, "running")
	_, err := f.client.NewContainer(ctx, "build", containerd.WithImage(containerd.NewImage(f.client, running.Image)),
		containerd.WithNewSnapshot("build", containerd.NewImage(f.client, running.Image)),
		containerd.WithContainerLabels(map[string]string{container.JobLabel: "j1-00000000"}))
	require.NoError(t, err)
	// One of docker's that is stopped: dockerd keeps its file system by a lease.
	stopped := f.image(mine+"stopped:1", long, "stopped")
	id := strings.Repeat("0123456789abcdef", 4)
	f.lease(id, nil, leases.Resource{ID: id, Type: "snapshots/" + snapshotter}, leases.Resource{ID: id + "-init", Type: "snapshots/" + snapshotter})
	held := leases.WithLease(ctx, id)
	sn := f.client.SnapshotService(snapshotter)
	_, err = sn.Prepare(held, id+"-making", stopped.chain)
	require.NoError(t, err)
	require.NoError(t, sn.Commit(held, id+"-init", id+"-making"))
	_, err = sn.Prepare(held, id, id+"-init")
	require.NoError(t, err)
	// What a job has prepared, and not made a container of yet.
	prepared := f.image(mine+"prepared:1", long, "prepared")
	f.lease("berth-j2", map[string]string{container.JobLabel: "j2-00000000"}, leases.Resource{ID: prepared.Target.Digest.String(), Type: "content"})
	// What is being pulled.
	pulled := f.image(mine+"pulled:1", long, "pulled")
	f.lease("pull", nil, leases.Resource{ID: pulled.Target.Digest.String(), Type: "content"})
	// What a job has named or resolved, and not begun to use.
	used := f.image(mine+"used:1", 14*day+time.Hour, "used")
	f.setJobs(api.Job{Key: "j3-00000000", Since: time.Now()})
	f.keeper.uses.note("j3-00000000", used.Name)
	kept = append(kept, running, stopped, prepared, pulled, used)
	// A cache has a layer: the image goes, and the layer stays.
	cached := f.image(mine+"cached:1", long, "cached")
	f.lease("cache-record", map[string]string{flatLabel: "now"}, leases.Resource{ID: cached.chain, Type: "snapshots/" + snapshotter})
	// BuildKit goes on to hold what a build was FROM.
	built := f.image(mine+"resolved:1", long, "resolved")
	f.lease("resolved", map[string]string{temporaryLabel: "now"}, leases.Resource{ID: built.Target.Digest.String(), Type: "content"})

	list, err := f.keeper.List(ctx)
	require.NoError(t, err)
	users := map[string]string{}
	for _, i := range list {
		users[i.Image] = strings.Join(i.Users, ",")
		require.Greater(t, i.Size, int64(2<<16), i.Name)
	}
	require.Equal(t, map[string]string{
		"old:1": "", "base:1": "", "cached:1": "", "resolved:1": "", "running:1": "j1-00000000", "stopped:1": "container 0123456789ab",
		"prepared:1": "j2-00000000", "pulled:1": "lease pull", "used:1": "j3-00000000",
	}, users)

	require.Equal(t, mine+"cached:1 "+mine+"old:1 "+mine+"resolved:1", f.collect(f.keeper))
	for _, m := range kept {
		require.Equal(t, "whole", f.whole(m), m.Name)
	}
	require.Equal(t, "1 of 4", f.whole(cached))
	require.Equal(t, "whole", f.whole(built), "until the lease ends")
	for _, d := range old.blobs[1:] { // the first is the base's
		_, err := f.client.ContentStore().Info(ctx, d)
		require.True(t, errdefs.IsNotFound(err), "%v: %v", d, err)
	}
	_, err = sn.Stat(ctx, old.chain)
	require.True(t, errdefs.IsNotFound(err), err)

	// When the users have gone, the images do.
	f.setJobs()
	for _, l := range []string{id, "berth-j2", "pull"} {
		require.NoError(t, f.client.LeasesService().Delete(ctx, leases.Lease{ID: l}))
	}
	require.NoError(t, sn.Remove(ctx, id))
	require.NoError(t, sn.Remove(ctx, id+"-init"))
	c, err := f.client.LoadContainer(ctx, "build")
	require.NoError(t, err)
	require.NoError(t, c.Delete(ctx, containerd.WithSnapshotCleanup))
	f.collect(f.keeper)
	require.Equal(t, base.Name+" "+his.Name, f.names())
	for _, m := range kept[2:] {
		require.Equal(t, "gone", f.whole(m), m.Name)
	}
}

// TestRoom has images go for room alone.
func TestRoom(t *testing.T) {
	f := newFixture(t, Policy{MinAge: time.Hour, MaxSize: 1})
	old := f.image(mine+"old:1", 2*time.Hour, "old")
	f.image(mine+"new:1", time.Minute, "new")
	require.Equal(t, old.Name, f.collect(f.keeper), "what was just used stays")
	require.Equal(t, "gone", f.whole(old))
	p := api.ImagePrune{Room: api.Room{MinFree: 1 << 60}, DryRun: true}
	removed, err := f.keeper.Prune(t.Context(), p)
	require.NoError(t, err)
	require.Len(t, removed, 1)
	require.Equal(t, mine+"new:1", f.names())
	p.DryRun, p.Project = false, "group/other"
	removed, err = f.keeper.Prune(t.Context(), p)
	require.NoError(t, err)
	require.Empty(t, removed)
	p.Project = "group/web"
	removed, err = f.keeper.Prune(t.Context(), p)
	require.NoError(t, err)
	require.Len(t, removed, 1)
	require.Equal(t, "group/web", removed[0].Project)
	require.Equal(t, NoRoom, removed[0].Reason)
	require.Greater(t, removed[0].Unique, int64(1<<17), "blob and snapshot")
	_, err = f.keeper.Prune(t.Context(), api.ImagePrune{})
	require.True(t, errdefs.IsInvalidArgument(err), err)
}

func TestRemove(t *testing.T) {
	f := newFixture(t, Policy{})
	f.setJobs(api.Job{Key: "j1-00000000", Since: time.Now()})
	one := f.image(mine+"one:1", day, "one")
	f.image("docker.io/library/operators:1", -1, "operators")
	require.NoError(t, f.keeper.Use(t.Context(), "j1-00000000", one.Image))
	err := f.keeper.Remove(t.Context(), one.Name)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "j1-00000000")
	f.setJobs()
	require.NoError(t, f.keeper.Remove(t.Context(), one.Name))
	require.Equal(t, "gone", f.whole(one))
	err = f.keeper.Remove(t.Context(), one.Name)
	require.True(t, errdefs.IsNotFound(err), err)
	err = f.keeper.Remove(t.Context(), "docker.io/library/operators:1")
	require.True(t, errdefs.IsPermissionDenied(err), err)
}

// TestRestart has a job live on that used an image before berthd was started
// again: nothing of it is known but the note on the image.
func TestRestart(t *testing.T) {
	f := newFixture(t, Policy{MaxAge: time.Minute})
	f.setJobs(api.Job{Key: "j1-00000000", Since: time.Now().Add(-3 * time.Hour)})
	f.image(mine+"before:1", 5*time.Hour, "before")
	f.image(mine+"during:1", 2*time.Hour, "during")
	again := f.open(f.keeper.Policy)
	require.Equal(t, mine+"before:1", f.collect(again))
	f.setJobs()
	require.Equal(t, mine+"during:1", f.collect(again))
}

// TestNote looks at what a use writes.
func TestNote(t *testing.T) {
	f := newFixture(t, Policy{})
	ctx, store := t.Context(), f.client.ImageService()
	get := func(name string) images.Image {
		i, err := store.Get(ctx, name)
		require.NoError(t, err)
		return i
	}
	old := f.image(mine+"old:1", day, "old")
	require.NoError(t, f.keeper.Use(ctx, "j1", old.Image))
	noted := get(old.Name)
	require.Less(t, time.Since(lastuse.Of(noted)), lastuse.Interval)
	require.Equal(t, old.Target.Digest, noted.Target.Digest)
	require.NoError(t, f.keeper.Use(ctx, "j1", noted))
	require.Equal(t, noted.UpdatedAt, get(old.Name).UpdatedAt, "one note in half an hour is enough")
	// The operator's own stays without, also when it is pulled again.
	his := f.image("docker.io/library/operators:1", -1, "operators")
	require.NoError(t, f.keeper.Use(ctx, "j1", his.Image))
	require.False(t, lastuse.Ours(get(his.Name)))
	labels, err := lastuse.Pulled(ctx, store, his.Name, nil)
	require.NoError(t, err)
	require.Empty(t, labels)
	for _, name := range []string{old.Name, "docker.io/library/new:1"} {
		labels, err := lastuse.Pulled(ctx, store, name, map[string]string{"a": "b"})
		require.NoError(t, err)
		require.Len(t, labels, 2)
	}
	// So does another name that he gives to one of Berth's; docker and ctr copy the labels.
	_, err = store.Create(ctx, images.Image{Name: "docker.io/library/golden:1", Target: old.Target, Labels: noted.Labels})
	require.NoError(t, err)
	require.NoError(t, f.keeper.Use(ctx, "j1", get("docker.io/library/golden:1")))
	require.False(t, lastuse.Ours(get("docker.io/library/golden:1")))
	// What docker keeps of a name that a job has given to another image is the job's.
	require.True(t, lastuse.Ours(images.Image{Name: dangling + old.Target.Digest.String(), Labels: noted.Labels}))
	// One that has gone meanwhile cannot be used.
	require.NoError(t, store.Delete(ctx, old.Name))
	err = f.keeper.Use(ctx, "j2", old.Image)
	require.True(t, errdefs.IsNotFound(err), err)
}

// TestUsedMeanwhile has images be used when they have been chosen to go.
func TestUsedMeanwhile(t *testing.T) {
	f := newFixture(t, Policy{})
	ctx := t.Context()
	all := map[string]made{}
	for _, name := range []string{"docker:1", "prepare:1", "moved:1", "gone:1", "unused:1"} {
		all[name] = f.image(mine+name, 15*day, name)
	}
	another := f.image("docker.io/library/another:1", 13*day, "another")
	stock, err := f.keeper.stock(ctx)
	require.NoError(t, err)
	free, err := f.keeper.free()
	require.NoError(t, err)
	chosen := stock.plan(twoWeeks, free, time.Now())
	require.Len(t, chosen, 5)
	store := f.client.ImageService()
	require.NoError(t, f.keeper.Use(ctx, "j1-00000000", all["docker:1"].Image))
	_, err = store.Update(ctx, all["docker:1"].Image) // as if a note had not been due
	require.NoError(t, err)
	require.NoError(t, lastuse.Touch(ctx, store, all["prepare:1"].Image))
	moved := all["moved:1"].Image
	moved.Target = another.Target
	_, err = store.Update(ctx, moved)
	require.NoError(t, err)
	require.NoError(t, store.Delete(ctx, mine+"gone:1"))
	went, err := f.keeper.removeAll(ctx, chosen)
	require.NoError(t, err)
	require.Len(t, went, 1)
	require.Equal(t, mine+"docker:1 "+mine+"moved:1 "+mine+"prepare:1 "+another.Name, f.names())
}

// TestRace has jobs use an image again and again that is about to go: by
// prepare, which knows nothing of berthd's, and by docker and builds.
func TestRace(t *testing.T) {
	f := newFixture(t, Policy{})
	const ref = "docker.io/library/app:1"
	var removals atomic.Int32
	ctx, stop := context.WithCancel(t.Context())
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			went, err := f.keeper.Prune(t.Context(), api.ImagePrune{Room: api.Room{MaxAge: day}})
			if err != nil {
				t.Error(err)
				return
			}
			removals.Add(int32(len(went)))
		}
	})
	defer collecting.Wait()
	defer stop()
	puller := &image.Puller{Client: f.client, LockDir: t.TempDir(), Snapshotter: snapshotter}
	prepare := func(job string) (used bool) {
		l := f.lease(job, map[string]string{container.JobLabel: job})
		defer func() { require.NoError(t, f.client.LeasesService().Delete(t.Context(), l)) }()
		ctx := leases.WithLease(t.Context(), l.ID)
		img, err := puller.Pull(ctx, image.Request{Ref: ref, Policies: []image.Policy{image.Never}})
		if errdefs.IsNotFound(err) {
			return false
		}
		require.NoError(t, err)
		// What it has got is there, whatever becomes of the name.
		c, err := f.client.NewContainer(ctx, job, containerd.WithImage(img), containerd.WithNewSnapshot(job, img),
			containerd.WithNewSpec(oci.WithImageConfig(img)))
		require.NoError(t, err)
		require.NoError(t, c.Delete(ctx, containerd.WithSnapshotCleanup))
		return true
	}
	use := func(job string) (used bool) {
		i, err := f.client.ImageService().Get(t.Context(), ref)
		if err == nil {
			err = f.keeper.Use(t.Context(), job, i)
		}
		if errdefs.IsNotFound(err) {
			return false
		}
		require.NoError(t, err)
		f.age(ref) // so that it is no new note that keeps it
		before := removals.Load()
		f.image(mine+"other:1", 15*day, "other")
		require.Eventually(t, func() bool { return removals.Load() > before }, time.Minute, time.Millisecond)
		_, err = f.client.ImageService().Get(t.Context(), ref)
		require.NoError(t, err)
		return true
	}
	for name, do := range map[string]func(string) bool{"prepare": prepare, "docker": use} {
		uses, misses := 0, 0
		for n := 0; uses < 10; n++ {
			job := fmt.Sprintf("j%d-%s", n, name)
			f.setJobs(api.Job{Key: job, Since: time.Now()})
			app := f.image(ref, 15*day, "app")
			if do(job) {
				uses++
				if name == "docker" {
					require.Equal(t, "whole", f.whole(app))
				}
			} else {
				misses++
			}
			f.setJobs()
		}
		t.Logf("%s: %d uses, %d came too late, %d removals", name, uses, misses, removals.Load())
	}
	require.NotZero(t, removals.Load())
}

// TestKill kills a berthd that collects, and looks at what there is then.
func TestKill(t *testing.T) {
	f := newFixture(t, twoWeeks)
	kept := f.image(mine+"kept:1", day, "base", "kept")
	var old []made
	for n := range 40 {
		old = append(old, f.image(fmt.Sprintf("%sold:%02d", mine, n), 15*day, "base", fmt.Sprint("old", n)))
	}
	work, err := json.Marshal(childWork{address, t.Name()})
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(work))
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return !strings.Contains(f.names(), "old:00") }, time.Minute, time.Millisecond)
	require.NoError(t, cmd.Process.Signal(unix.SIGKILL))
	_ = cmd.Wait()
	left := 0
	for _, m := range old {
		if _, err := f.client.ImageService().Get(t.Context(), m.Name); err == nil {
			require.Equal(t, "whole", f.whole(m), m.Name)
			left++
		}
	}
	t.Logf("%d of %d are left", left, len(old))
	require.Equal(t, "whole", f.whole(kept))
	// The next one ends it. What the first had removed the names of goes in any case.
	f.collect(f.keeper)
	require.NoError(t, f.keeper.sweep(t.Context()))
	require.Equal(t, kept.Name, f.names())
	require.Equal(t, "whole", f.whole(kept))
	for _, m := range old {
		require.NotEqual(t, "whole", f.whole(m), m.Name)
		_, err := f.client.SnapshotService(snapshotter).Stat(t.Context(), m.chain)
		require.True(t, errdefs.IsNotFound(err), err)
	}
}
