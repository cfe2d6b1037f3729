package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/buildkit/worktree"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/tree"
)

// dirs are berthd's directories below its root.
type dirs struct {
	root string
	// caches are the projects', at /cache in their jobs.
	caches *cache.Directories
	// thrown is filled when there is something in the trash.
	thrown chan struct{}
}

func openDirs(root string) (*dirs, error) {
	d := &dirs{root: root, thrown: make(chan struct{}, 1)}
	d.thrown <- struct{}{} // what an earlier berthd did not get to
	d.caches = cache.OpenDirectories(filepath.Join(root, "cache"), d.throw)
	for _, name := range []string{"jobs", "cache", "locks", "runners", "trash"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			return nil, fmt.Errorf("make directories: %w", err)
		}
	}
	return d, nil
}

// of names the directories of a job.
func (d *dirs) of(job, project string) api.Dirs {
	own := filepath.Join(d.root, "jobs", job)
	return api.Dirs{
		Job:     own,
		Builds:  filepath.Join(own, "builds"),
		Cache:   filepath.Join(d.root, "cache", project),
		Locks:   filepath.Join(d.root, "locks"),
		Runners: filepath.Join(d.root, "runners"),
	}
}

// retake tells of the jobs that have directories since before berthd started.
func (d *dirs) retake(records ...journal.Record) {
	for _, r := range records {
		if dir := r.Admission.Dirs.Cache; dir != "" {
			d.caches.Retake(r.Job.Key, filepath.Base(dir))
		}
	}
}

// create makes a job's directories. The job's own is closed to other users
// of the node; what is below is for the job to decide.
func (d *dirs) create(job string, of api.Dirs) error {
	if err := os.Mkdir(of.Job, 0o700); err != nil {
		return fmt.Errorf("make the job's directory: %w", err)
	}
	if err := os.Mkdir(of.Builds, 0o755); err != nil {
		return fmt.Errorf("make the job's directory: %w", err)
	}
	return d.caches.Take(job, filepath.Base(of.Cache))
}

// jobs lists the jobs that have a directory.
func (d *dirs) jobs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.root, "jobs"))
	if err != nil {
		return nil, fmt.Errorf("list the jobs' directories: %w", err)
	}
	jobs := make([]string, len(entries))
	for i, e := range entries {
		jobs[i] = e.Name()
	}
	return jobs, nil
}

// remove moves a job's directory out of the way in no time, however much is
// in it; empty deletes it later. The project keeps its cache.
func (d *dirs) remove(job string) error {
	d.caches.Release(job)
	dir := filepath.Join(d.root, "jobs", job)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A mount that was left would be deleted along, and with it what is mounted.
	if err := worktree.Detach(dir); err != nil {
		return fmt.Errorf("remove the job's directory: %w", err)
	}
	if _, err := d.throw(dir, job); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the job's directory: %w", err)
	}
	return nil
}

// throw moves a directory to the trash, under a name like the one given.
func (d *dirs) throw(dir, name string) (string, error) {
	trash := filepath.Join(d.root, "trash", name+"."+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Rename(dir, trash); err != nil {
		return "", err
	}
	select {
	case d.thrown <- struct{}{}:
	default:
	}
	return trash, nil
}

// empty deletes what is in the trash, as it comes, until ctx ends.
func (d *dirs) empty(ctx context.Context, log *logrus.Entry) {
	trash := filepath.Join(d.root, "trash")
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.thrown:
		}
		entries, err := os.ReadDir(trash)
		if err != nil {
			log.WithError(err).Warn("cannot empty the trash")
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return
			}
			if err := tree.Remove(ctx, filepath.Join(trash, e.Name())); err != nil && ctx.Err() == nil {
				owner, _, _ := strings.Cut(e.Name(), ".")
				log.WithError(err).WithField("of", owner).Warn("cannot delete a job's files")
			}
		}
	}
}
