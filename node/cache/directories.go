package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/gc"
	"gitlab.com/berth-ci/berth/node/tree"
)

// Directories are what jobs have at /cache: one of each project and tier, which all its jobs share as it is. What an
// operator has put in the place of one, or of all, by a link or a mount, jobs get like any other; to look after it is
// the operator's.
type Directories struct {
	root string
	// throw moves a directory to where it is deleted, under a name of its own, and tells where that is.
	throw func(dir, name string) (string, error)

	// measuring is held by who measures.
	measuring sync.Mutex

	mu sync.Mutex
	// held are the jobs that have each.
	held map[string][]string
	// thrown are sizes of what is being deleted.
	thrown map[string]int64
}

// OpenDirectories takes over what is below root.
func OpenDirectories(root string, throw func(dir, name string) (string, error)) *Directories {
	return &Directories{root: root, throw: throw, held: map[string][]string{}, thrown: map[string]int64{}}
}

// directoryKey ends the keys of directories, and of nothing else: names of other caches have no colon there.
const directoryKey = "/directory:/cache"

// directoryName is the name of the directory that a key is about.
func directoryName(key string) (name string, ok bool) {
	name, ok = strings.CutSuffix(key, directoryKey)
	return name, ok && directoryPattern.MatchString(name)
}

// directoryPattern matches what executor.Identity.CacheKey makes. Nothing else that lies there is looked after.
var directoryPattern = regexp.MustCompile(`^p\d+-[0-9a-f]{8}-(?:un)?protected$`)

// note is what is known of a directory. It lies beside it, where no job can change it.
type note struct {
	Used     time.Time     `json:"used"` // when it was last given to a job or back
	Size     int64         `json:"size"`
	Measured time.Time     `json:"measured,omitzero"` // when that began
	Took     time.Duration `json:"took,omitempty"`
	Pinned   bool          `json:"pinned,omitempty"`
}

// measurePause is how many times as long as it took to measure a directory it is not measured again.
const measurePause = 20

// stale tells whether a directory is to be measured again.
func (n note) stale(held bool, now time.Time) bool {
	if n.Measured.IsZero() {
		return true
	}
	return (held || !n.Used.Before(n.Measured)) && now.Sub(n.Measured) >= measurePause*n.Took
}

func (d *Directories) path(name string) string { return filepath.Join(d.root, name) }

func (d *Directories) notePath(name string) string { return d.path(name) + ".json" }

// read gives what is known of a directory. One of which nothing is known was last used when it was last changed,
// which jobs can set as they like.
func (d *Directories) read(name string) note {
	var n note
	text, err := os.ReadFile(d.notePath(name))
	if err == nil && json.Unmarshal(text, &n) == nil {
		return n
	}
	n = note{Used: time.Now()}
	if info, err := os.Stat(d.path(name)); err == nil && info.ModTime().Before(n.Used) {
		n.Used = info.ModTime()
	}
	return n
}

func (d *Directories) write(name string, n note) error {
	text, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode what is known of /cache %s: %w", name, err)
	}
	next := d.notePath(name) + ".next"
	err = os.WriteFile(next, text, 0o600)
	if err == nil && n.Pinned {
		err = settle(next)
	}
	if err == nil {
		err = os.Rename(next, d.notePath(name))
	}
	if err != nil {
		return fmt.Errorf("note the use of /cache %s: %w", name, err)
	}
	return nil
}

// settle waits until a file is on the disk.
func settle(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Sync()
}

// Take gives a job its directory, and makes it if need be. It is the job's until Release.
func (d *Directories) Take(job, name string) error {
	if !directoryPattern.MatchString(name) {
		return fmt.Errorf("/cache %q: not a project's name: %w", name, errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	// For jobs of any user, as a cache volume of the docker executor is.
	err := os.Mkdir(d.path(name), 0o777)
	if err == nil {
		err = os.Chmod(d.path(name), 0o777)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the project's cache: %w", err)
	}
	d.hold(job, name)
	d.touch(name)
	return nil
}

// Retake tells of a job of an earlier berthd that has its directory still.
func (d *Directories) Retake(job, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold(job, name)
}

// hold notes a holder; d.mu is held.
func (d *Directories) hold(job, name string) {
	if !slices.Contains(d.held[name], job) {
		d.held[name] = append(d.held[name], job)
	}
}

// touch notes that a directory is used now; d.mu is held. A full disk is no reason to fail: it is held all the same,
// and was used when that could be noted last.
func (d *Directories) touch(name string) {
	n := d.read(name)
	n.Used = time.Now()
	_ = d.write(name, n)
}

// Release takes back what a job has, of which nothing lives any more. It is idempotent.
func (d *Directories) Release(job string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, jobs := range d.held {
		at := slices.Index(jobs, job)
		if at < 0 {
			continue
		}
		d.touch(name)
		if jobs = slices.Delete(jobs, at, at+1); len(jobs) > 0 {
			d.held[name] = jobs
			continue
		}
		delete(d.held, name)
		d.tidy(name)
	}
}

// tidy removes a directory that nobody has if nothing is in it; d.mu is held.
func (d *Directories) tidy(name string) {
	if !d.plain(name) || d.read(name).Pinned {
		return
	}
	if err := unix.Rmdir(d.path(name)); err == nil || errors.Is(err, unix.ENOENT) {
		_ = os.Remove(d.notePath(name))
	}
}

// plain tells whether a directory is where berthd makes it.
func (d *Directories) plain(name string) bool {
	at, err := unix.Open(filepath.Dir(d.root), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(at) }()
	fd, err := unix.Openat2(at, filepath.Join(filepath.Base(d.root), name), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	_ = unix.Close(fd)
	return true
}

// names lists what is looked after here.
func (d *Directories) names() ([]string, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("list the projects' caches: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && directoryPattern.MatchString(e.Name()) && d.plain(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// patience is how long List measures.
const patience = 2 * time.Second

// List tells all that have anything in them. Large ones have the size that Measure found.
func (d *Directories) List(ctx context.Context) ([]gc.Item, error) {
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = d.Measure(soon) // who calls it for its own sake hears why one cannot be measured
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	var items []gc.Item
	for _, name := range names {
		if item, ok := d.item(name); ok {
			items = append(items, item)
		}
	}
	return items, nil
}

func (d *Directories) item(name string) (gc.Item, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.read(name)
	if !n.Pinned && empty(d.path(name)) {
		return gc.Item{}, false
	}
	return gc.Item{
		Kind: gc.Directory, Key: name + directoryKey, Size: n.Size, Used: n.Used,
		Held: len(d.held[name]) > 0, Pinned: n.Pinned,
	}, true
}

// empty tells whether nothing is in a directory, or there is none.
func empty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer func() { _ = f.Close() }()
	names, _ := f.Readdirnames(1)
	return len(names) == 0
}

// Measure measures what jobs have had since it was measured last, unless somebody does already. Jobs do not wait for
// it.
func (d *Directories) Measure(ctx context.Context) error {
	if !d.measuring.TryLock() {
		return nil
	}
	defer d.measuring.Unlock()
	names, err := d.names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		err := d.measure(ctx, name)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// It can be removed meanwhile, or its job move things about in it.
		if !errors.Is(err, fs.ErrNotExist) && !errdefs.IsAborted(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Directories) measure(ctx context.Context, name string) error {
	began := time.Now()
	d.mu.Lock()
	held := len(d.held[name]) > 0
	if !held {
		d.tidy(name)
	}
	stale := d.read(name).stale(held, began)
	d.mu.Unlock()
	if !stale {
		return nil
	}
	size, err := tree.Size(ctx, d.path(name))
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Lstat(d.path(name)); err != nil {
		return err
	}
	n := d.read(name)
	n.Size, n.Measured, n.Took = size, began, time.Since(began)
	return d.write(name, n)
}

// Holders lists the jobs that have what a key is about.
func (d *Directories) Holders(key string) []string {
	name, _ := directoryName(key)
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.held[name])
}

// find gives the name of a directory that is there; d.mu is held.
func (d *Directories) find(key string) (string, error) {
	name, ok := directoryName(key)
	if !ok {
		return "", fmt.Errorf("%q is no key of a project's /cache: %w", key, errdefs.ErrNotFound)
	}
	if _, err := os.Stat(d.path(name)); err != nil {
		return "", fmt.Errorf("there is no cache %q: %w", key, errdefs.ErrNotFound)
	}
	if !d.plain(name) {
		return "", fmt.Errorf("cache %q is a link or a mount, which Berth does not look after: %w", key, errdefs.ErrFailedPrecondition)
	}
	return name, nil
}

// Pin keeps a directory from GC, or no longer.
func (d *Directories) Pin(key string, pinned bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, err := d.find(key)
	if err != nil {
		return err
	}
	n := d.read(name)
	n.Pinned = pinned
	return d.write(name, n)
}

// Remove has a directory deleted. One that a job has is left: errdefs.ErrFailedPrecondition.
func (d *Directories) Remove(key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, err := d.find(key)
	if err != nil {
		return err
	}
	if jobs := d.held[name]; len(jobs) > 0 {
		return fmt.Errorf("remove cache %q: %s has it: %w", key, strings.Join(jobs, ", "), errdefs.ErrFailedPrecondition)
	}
	if err := unmounted(d.path(name)); err != nil {
		return fmt.Errorf("remove cache %q: %w", key, err)
	}
	if err := tree.Loosen(d.path(name)); err != nil {
		return fmt.Errorf("remove cache %q: %w", key, err)
	}
	n := d.read(name)
	if err := os.Remove(d.notePath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cache %q: %w", key, err)
	}
	to, err := d.throw(d.path(name), name)
	if err != nil {
		return errors.Join(fmt.Errorf("remove cache %q: %w", key, err), d.write(name, n))
	}
	d.thrown[to] = n.Size
	return nil
}

// unmounted is an error if an operator has mounted anything in a directory.
func unmounted(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(resolved))
	if err != nil {
		return fmt.Errorf("find mounts: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is mounted: %w", mounts[0].Mountpoint, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Freeing is how much was removed and is not deleted yet.
func (d *Directories) Freeing() (bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for path, size := range d.thrown {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			delete(d.thrown, path)
			continue
		}
		bytes += size
	}
	return bytes
}
