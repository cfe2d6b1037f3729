// Package journal keeps what berthd must know of its jobs after a crash: one
// record per admitted job, on disk before the first of the job's resources
// is made and until the last of them is gone.
//
// It holds no secrets and decides nothing; what to do with the records at
// start is package node's business.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"gitlab.com/berth-ci/berth/executor"
)

// schema is the version of Record on disk. A berthd refuses journals of a
// later one.
const schema = 1

var (
	metaBucket = []byte("meta")
	jobsBucket = []byte("jobs")
	// projectsBucket has the path of each project by its key, for operators to read.
	projectsBucket = []byte("projects")
	schemaKey      = []byte("schema")
)

// Journal is an open journal file.
type Journal struct {
	db *bbolt.DB
}

// Open opens the journal, or makes one. A file that is no journal, or a
// damaged one, is moved aside, and its new name is returned: the jobs that
// it named must be found by other means.
func Open(path string) (j *Journal, moved string, err error) {
	j, err = open(path)
	if !errors.Is(err, errCorrupt) {
		return j, "", err
	}
	moved = fmt.Sprintf("%s.corrupt-%s", path, time.Now().UTC().Format("20060102T150405.000"))
	if renameErr := os.Rename(path, moved); renameErr != nil {
		return nil, "", fmt.Errorf("move journal aside: %w", errors.Join(renameErr, err))
	}
	if j, err = open(path); err != nil {
		return nil, moved, err
	}
	return j, moved, nil
}

func open(path string) (*Journal, error) {
	db, err := load(path)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open journal %s: another process has it open: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	if err := db.Update(prepare); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	return &Journal{db}, nil
}

// prepare makes the buckets of a new journal and checks those of an old one.
func prepare(tx *bbolt.Tx) error {
	meta := tx.Bucket(metaBucket)
	if meta == nil {
		if name, _ := tx.Cursor().First(); name != nil {
			return fmt.Errorf("%w: it is a database of something else: it has a bucket %q", errCorrupt, name)
		}
		var err error
		if meta, err = tx.CreateBucket(metaBucket); err != nil {
			return err
		}
		if err := meta.Put(schemaKey, []byte(strconv.Itoa(schema))); err != nil {
			return err
		}
	}
	version, err := strconv.Atoi(string(meta.Get(schemaKey)))
	if err != nil {
		return fmt.Errorf("%w: schema version %q", errCorrupt, meta.Get(schemaKey))
	}
	if version > schema {
		return fmt.Errorf("written by a later berthd: schema %d, this one knows %d: start that berthd, or end its jobs and remove the file: %w", version, schema, errdefs.ErrFailedPrecondition)
	}
	for _, name := range [][]byte{jobsBucket, projectsBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.db.Close() }

// Put writes a job's record; it is on disk when Put returns.
func (j *Journal) Put(r Record) error {
	b, err := json.Marshal(r.withoutSecrets())
	if err != nil {
		return fmt.Errorf("encode record of job %s: %w", r.Job.Key, err)
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		if err := nameProject(tx, r.Job.Identity); err != nil {
			return err
		}
		return tx.Bucket(jobsBucket).Put([]byte(r.Job.Key), b)
	})
	if err != nil {
		return fmt.Errorf("write job %s to the journal: %w", r.Job.Key, err)
	}
	return nil
}

// nameProject remembers the path of a job's project, which jobs alone tell.
func nameProject(tx *bbolt.Tx, id executor.Identity) error {
	key, projects := []byte(id.ProjectKey()), tx.Bucket(projectsBucket)
	if id.Project == "" || string(projects.Get(key)) == id.Project {
		return nil
	}
	return projects.Put(key, []byte(id.Project))
}

// Projects gives the path of each project that had jobs here, by its key.
func (j *Journal) Projects() (map[string]string, error) {
	projects := map[string]string{}
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(projectsBucket).ForEach(func(key, path []byte) error {
			projects[string(key)] = string(path)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return projects, nil
}

// Delete forgets a job.
func (j *Journal) Delete(job string) error {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(jobsBucket).Delete([]byte(job))
	})
	if err != nil {
		return fmt.Errorf("delete job %s from the journal: %w", job, err)
	}
	return nil
}

// Records gives all records, by key.
func (j *Journal) Records() ([]Record, error) {
	var records []Record
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(jobsBucket).ForEach(func(key, value []byte) error {
			var r Record
			if err := json.Unmarshal(value, &r); err != nil {
				// The key is enough to release the job.
				r = Record{}
			}
			r.Job.Key = string(key)
			records = append(records, r)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return records, nil
}
