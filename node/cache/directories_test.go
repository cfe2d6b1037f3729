package cache_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/gc"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
)

// directories are some in a place of their own, with a trash that nobody empties.
type directories struct {
	*testing.T
	*cache.Directories
	root  string
	mu    sync.Mutex
	trash []string
}

func newDirectories(t *testing.T) *directories { return newDirectoriesAt(t, t.TempDir()) }

func newDirectoriesAt(t *testing.T, dir string) *directories {
	d := &directories{T: t, root: filepath.Join(dir, "cache")}
	require.NoError(t, os.MkdirAll(d.root, 0o700))
	require.NoError(t, os.Mkdir(d.root+"-trash", 0o700))
	d.open()
	return d
}

// open is what a restart of berthd is to directories.
func (d *directories) open() {
	d.Directories = cache.OpenDirectories(d.root, func(dir, name string) (string, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		to := filepath.Join(d.root+"-trash", fmt.Sprint(name, ".", len(d.trash)))
		d.trash = append(d.trash, to)
		return to, os.Rename(dir, to)
	})
}

const mebibyte = 1 << 20

// fill is what a job does that leaves a file of a mebibyte. A directory that is last used so long ago keeps what else
// is known of it.
func (d *directories) fill(project string, ago time.Duration) (key string) {
	d.Helper()
	name := project + "-unprotected"
	require.NoError(d, d.Take("j1-0123abcd", name))
	require.NoError(d, os.WriteFile(filepath.Join(d.root, name, "file"), make([]byte, mebibyte), 0o600))
	d.Release("j1-0123abcd")
	key = name + "/directory:/cache"
	if ago > 0 {
		require.NoError(d, os.Remove(d.path(key)+".json"))
		then := time.Now().Add(-ago)
		require.NoError(d, os.Chtimes(d.path(key), then, then))
	}
	return key
}

func (d *directories) path(key string) string {
	return filepath.Join(d.root, strings.TrimSuffix(key, "/directory:/cache"))
}

func (d *directories) list() map[string]gc.Item {
	d.Helper()
	items, err := d.List(d.Context())
	require.NoError(d, err)
	list := map[string]gc.Item{}
	for _, i := range items {
		require.Equal(d, gc.Directory, i.Kind)
		list[i.Key] = i
	}
	return list
}

func TestDirectoryOfAJob(t *testing.T) {
	d := newDirectories(t)
	key := d.fill("p1-0123abcd", 0)
	item := d.list()[key]
	require.InDelta(t, mebibyte, item.Size, 64<<10)
	require.WithinDuration(t, time.Now(), item.Used, time.Minute)
	require.False(t, item.Held)

	name := "p1-0123abcd-unprotected"
	require.NoError(t, d.Take("j2-0123abcd", name))
	require.NoError(t, d.Take("j3-0123abcd", name))
	require.NoError(t, d.Take("j3-0123abcd", name), "its journal is written once more")
	require.Equal(t, []string{"j2-0123abcd", "j3-0123abcd"}, d.Holders(key))
	for _, job := range []string{"j2-0123abcd", "j3-0123abcd"} {
		require.True(t, d.list()[key].Held)
		err := d.Remove(key)
		require.True(t, errdefs.IsFailedPrecondition(err), err)
		require.ErrorContains(t, err, job)
		d.Release(job)
		d.Release(job)
	}
	// A job may set the times of its own files, and of what it has as /cache.
	past := time.Unix(0, 0)
	require.NoError(t, os.Chtimes(d.path(key), past, past))
	require.WithinDuration(t, time.Now(), d.list()[key].Used, time.Minute)
	require.False(t, d.list()[key].Held)

	require.NoError(t, d.Remove(key))
	require.Empty(t, d.list())
	err := d.Remove(key)
	require.True(t, errdefs.IsNotFound(err), err)
	require.InDelta(t, mebibyte, d.Freeing(), 64<<10, "on its way")
	require.NoError(t, os.RemoveAll(d.trash[0]))
	require.Zero(t, d.Freeing())
	left, err := os.ReadDir(d.root)
	require.NoError(t, err)
	require.Empty(t, left)

	require.NoError(t, d.Take("j4-0123abcd", name))
	require.DirExists(t, d.path(key), "made again")
}

// What a job left is measured once, however often it is asked for.
func TestDirectoryIsMeasuredAgainAfterAJob(t *testing.T) {
	d := newDirectories(t)
	key := d.fill("p1-0123abcd", 0)
	measured := func() int64 { t.Helper(); return d.list()[key].Size }
	require.Greater(t, measured(), int64(mebibyte)-1)
	require.NoError(t, os.WriteFile(filepath.Join(d.path(key), "unseen"), make([]byte, mebibyte), 0o600))
	require.Less(t, measured(), int64(2*mebibyte), "nobody had it since")
	d.open()
	require.Less(t, measured(), int64(2*mebibyte), "nor while berthd was away")
	require.NoError(t, d.Take("j2-0123abcd", "p1-0123abcd-unprotected"))
	require.Eventually(t, func() bool { return measured() >= 2*mebibyte }, 20*time.Second, 10*time.Millisecond)
	d.Release("j2-0123abcd")
	require.NoError(t, os.Remove(filepath.Join(d.path(key), "unseen")))
	require.Eventually(t, func() bool { return measured() < 2*mebibyte }, 20*time.Second, 10*time.Millisecond)
}

func TestDirectorySurvivesRestart(t *testing.T) {
	d := newDirectories(t)
	pinned, held, old := d.fill("p1-0123abcd", 0), d.fill("p2-0123abcd", 0), d.fill("p3-0123abcd", 48*time.Hour)
	require.NoError(t, d.Pin(pinned, true))
	require.NoError(t, d.Take("j2-0123abcd", "p2-0123abcd-unprotected"))
	d.list()
	d.open()
	d.Retake("j2-0123abcd", "p2-0123abcd-unprotected")
	list := d.list()
	require.True(t, list[pinned].Pinned)
	require.True(t, list[held].Held)
	require.True(t, errdefs.IsFailedPrecondition(d.Remove(held)))
	require.WithinDuration(t, time.Now().Add(-48*time.Hour), list[old].Used, time.Minute)
	d.Release("j2-0123abcd")
	require.NoError(t, d.Remove(held))
	require.NoError(t, d.Pin(pinned, false))
	require.False(t, d.list()[pinned].Pinned)
}

// Most jobs put nothing there.
func TestEmptyDirectoriesGo(t *testing.T) {
	d := newDirectories(t)
	require.NoError(t, d.Take("j1-0123abcd", "p1-0123abcd-protected"))
	require.Empty(t, d.list())
	require.DirExists(t, filepath.Join(d.root, "p1-0123abcd-protected"))
	d.Release("j1-0123abcd")
	require.NoError(t, os.Mkdir(filepath.Join(d.root, "p2-0123abcd-protected"), 0o755), "of an earlier berthd")
	require.Empty(t, d.list())
	left, err := os.ReadDir(d.root)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestHostileDirectory(t *testing.T) {
	d := newDirectories(t)
	outside := t.TempDir()
	precious := filepath.Join(outside, "file")
	require.NoError(t, os.WriteFile(precious, make([]byte, mebibyte), 0o600))
	key := d.fill("p1-0123abcd", 0)
	require.NoError(t, os.Symlink(outside, filepath.Join(d.path(key), "link")))
	require.NoError(t, os.Chmod(d.path(key), 0))
	f, err := os.Open(d.path(key))
	require.NoError(t, err)
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x10)
	require.NoError(t, f.Close())
	if err != nil {
		t.Logf("no immutable directories in %s: %v", d.root, err)
	}
	require.Less(t, d.list()[key].Size, int64(2*mebibyte))
	require.NoError(t, d.Remove(key))
	require.FileExists(t, precious)
	for _, bad := range []string{
		"lost+found/directory:/cache", "/directory:/cache", "../directory:/cache", "../cache-trash/directory:/cache", "p1-0123abcd/x/directory:/cache", "p2-0123abcd-protected", "p2/directory:/cache",
	} {
		require.True(t, errdefs.IsNotFound(d.Remove(bad)), bad)
		require.True(t, errdefs.IsNotFound(d.Pin(bad, true)), bad)
	}
	require.NoError(t, os.Mkdir(filepath.Join(d.root, "lost+found"), 0o700))
	require.Empty(t, d.list())
	require.Error(t, d.Take("j1-0123abcd", ".."))
	require.Error(t, d.Take("j1-0123abcd", "../x"))
}

// An operator may have put a disk or a directory elsewhere in the place of one, of all, or into one.
func TestDirectoriesOfTheOperator(t *testing.T) {
	elsewhere := func(t *testing.T) string {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, mebibyte), 0o600))
		return dir
	}
	bind := func(t *testing.T, source, at string) {
		require.NoError(t, os.MkdirAll(at, 0o755))
		require.NoError(t, unix.Mount(source, at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(at, unix.MNT_DETACH)) })
	}
	const name, key = "p1-0123abcd-protected", "p1-0123abcd-protected/directory:/cache"
	for what, put := range map[string]func(t *testing.T, d *directories) (listed bool){
		"link": func(t *testing.T, d *directories) bool {
			require.NoError(t, os.Symlink(elsewhere(t), d.path(key)))
			return false
		},
		"mount": func(t *testing.T, d *directories) bool { bind(t, elsewhere(t), d.path(key)); return false },
		"all linked": func(t *testing.T, d *directories) bool {
			d.root += "-link"
			require.NoError(t, os.Symlink(d.root[:len(d.root)-5], d.root))
			d.open()
			return false
		},
		"all mounted": func(t *testing.T, d *directories) bool {
			bind(t, t.TempDir(), d.root)
			return false
		},
		"mounted in it": func(t *testing.T, d *directories) bool { bind(t, elsewhere(t), d.path(key)+"/a/b"); return true },
	} {
		t.Run(what, func(t *testing.T) {
			d := newDirectories(t)
			listed := put(t, d)
			require.NoError(t, d.Take("j1-0123abcd", name))
			require.NoError(t, os.WriteFile(filepath.Join(d.path(key), "jobs"), nil, 0o600))
			d.Release("j1-0123abcd")
			_, found := d.list()[key]
			require.Equal(t, listed, found)
			err := d.Remove(key)
			require.True(t, errdefs.IsFailedPrecondition(err), err)
			require.FileExists(t, filepath.Join(d.path(key), "jobs"))
			require.Empty(t, d.trash)
		})
	}
}

// TestDirectoryIsRemovedAsJobsTakeIt has who takes a directory find it there as long as it has it.
func TestDirectoryIsRemovedAsJobsTakeIt(t *testing.T) {
	d := newDirectories(t)
	const name, key = "p1-0123abcd-protected", "p1-0123abcd-protected/directory:/cache"
	var jobs sync.WaitGroup
	for n := range 2 {
		jobs.Go(func() {
			job := fmt.Sprintf("j%d-0123abcd", n)
			file := filepath.Join(d.path(key), job)
			for range 200 {
				if err := d.Take(job, name); err != nil {
					t.Error(err)
					return
				}
				err := os.WriteFile(file, nil, 0o600)
				if _, gone := os.Stat(file); err != nil || gone != nil {
					t.Error("removed while a job has it", err, gone)
				}
				d.Release(job)
			}
		})
	}
	done := make(chan struct{})
	go func() { jobs.Wait(); close(done) }()
	for removed := 0; ; {
		select {
		case <-done:
			t.Log(removed, "removed")
			return
		default:
		}
		switch err := d.Remove(key); {
		case err == nil:
			removed++
		case !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err):
			t.Error(err)
		}
		if err := d.Measure(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestKeepDirectories has an operator, and the policy, look after directories among other caches.
func TestKeepDirectories(t *testing.T) {
	n := newNode(t)
	d := newDirectories(t)
	projects := func() (map[string]string, error) {
		return map[string]string{"p1-0123abcd": "group/one", "p2-0123abcd": "group/two"}, nil
	}
	weights := gc.Policy{Weight: func(project string) int { return map[string]int{"group/two": 3}[project] }}
	k := n.service.Keeper(weights, projects, d.Directories)
	const day = 24 * time.Hour
	one, two := d.fill("p1-0123abcd", 2*day), d.fill("p2-0123abcd", 3*day)
	other, ancient := d.fill("p3-0123abcd", 1*day), d.fill("p4-0123abcd", 40*day)

	list, err := k.List(t.Context())
	require.NoError(t, err)
	byKey := map[string]api.Cache{}
	for _, c := range list {
		byKey[c.Key] = c
	}
	require.Len(t, byKey, 4)
	require.Equal(t, "group/one", byKey[one].Project)
	require.Equal(t, "p3-0123abcd", byKey[other].Project)
	require.Equal(t, api.CacheDirectories, byKey[one].Kind)
	require.Greater(t, byKey[one].Size, int64(mebibyte)-1)

	_, err = k.Rollback(t.Context(), api.CacheChange{Key: one})
	require.True(t, errdefs.IsInvalidArgument(err), err)
	require.ErrorContains(t, err, "no generations")
	require.True(t, errdefs.IsInvalidArgument(k.Remove(t.Context(), api.CacheChange{Key: one, Number: 3})))
	require.True(t, errdefs.IsInvalidArgument(k.Pin(t.Context(), api.CacheChange{Key: one, Number: 3, Pinned: true})))

	prune := func(p api.CachePrune) (removed []string) {
		t.Helper()
		went, err := k.Prune(t.Context(), p)
		require.NoError(t, err)
		for _, c := range went {
			require.Equal(t, api.CacheDirectories, c.Kind)
			removed = append(removed, c.Key)
		}
		return removed
	}
	require.Empty(t, prune(api.CachePrune{Room: api.Room{MaxBytes: 100 * mebibyte}}))
	require.Equal(t, []string{ancient}, prune(api.CachePrune{Room: api.Room{MaxAge: 30 * day}}))
	// Two mebibytes and a half are left for three of one: two's are its share, though they are the oldest.
	require.Equal(t, []string{one}, prune(api.CachePrune{Room: api.Room{MaxBytes: 5 * mebibyte / 2}}))

	one = d.fill("p1-0123abcd", 2*day)
	require.NoError(t, k.Pin(t.Context(), api.CacheChange{Key: one, Pinned: true}))
	require.NoError(t, d.Take("j9-0123abcd", "p2-0123abcd-unprotected"))
	list, err = k.List(t.Context())
	require.NoError(t, err)
	for _, c := range list {
		require.Equal(t, c.Key == one, c.Pinned, c.Key)
		require.Equal(t, c.Key == two, c.Held, c.Key)
		if c.Held {
			require.Equal(t, []string{"j9-0123abcd"}, c.Holders)
		}
	}
	require.Equal(t, []string{other}, prune(api.CachePrune{Room: api.Room{All: true}}))
	require.True(t, errdefs.IsFailedPrecondition(k.Remove(t.Context(), api.CacheChange{Key: two})))
	d.Release("j9-0123abcd")
	require.NoError(t, k.Pin(t.Context(), api.CacheChange{Key: one}))
	require.Equal(t, []string{two}, prune(api.CachePrune{Room: api.Room{All: true, Project: "group/two"}}))
	require.NoError(t, k.Remove(t.Context(), api.CacheChange{Key: one}))
	require.True(t, errdefs.IsNotFound(k.Remove(t.Context(), api.CacheChange{Key: one})))
	require.Empty(t, prune(api.CachePrune{Room: api.Room{All: true}}))
}

// What is removed is deleted later. More must not go meanwhile for the sake of free space.
func TestFreeSpaceOnItsWay(t *testing.T) {
	n := newNode(t)
	disk := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=16m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	d := newDirectoriesAt(t, disk)
	c := n.engine.Collector(cache.Project)
	c.Directories, c.Disk = d.Directories, disk
	want := []string{d.fill("p4-0123abcd", 5*time.Hour), d.fill("p1-0123abcd", 4*time.Hour)}
	left := []string{d.fill("p3-0123abcd", 3*time.Hour), d.fill("p2-0123abcd", 2*time.Hour)}
	d.list() // notes are made
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(disk, &st))
	free := int64(st.Bavail) * st.Frsize
	for range 3 {
		went, err := c.Run(t.Context(), gc.Policy{MinFree: free + 3*mebibyte/2})
		require.NoError(t, err)
		var keys []string
		for _, i := range went {
			keys = append(keys, i.Key)
		}
		require.Equal(t, want, keys)
		want = nil
	}
	for _, key := range left {
		require.Contains(t, d.list(), key)
	}
}
