// Package ledger is berthd's own record of which job made which of the docker
// daemon's objects. It outlives berthd but not the boot: it lies below state,
// and what a job of an earlier boot left is found by its labels. It does not
// ask dockerd whether what it lists is still there.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Kinds of objects.
const (
	Container = "container"
	Network   = "network"
	Volume    = "volume"
	// Image is one without a name, by its digest.
	Image = "image"
	// Hidden is an image name that the job has removed from its view.
	Hidden = "hidden"
	// Call notes that the job has called at all.
	Call = "call"
)

// Ledger is an open record.
type Ledger struct{ db *bbolt.DB }

// Open opens the record in a file. One that is damaged is put aside: labels
// tell what there is.
func Open(path string) (*Ledger, error) {
	open := func() (*bbolt.DB, error) {
		// A crash of berthd loses nothing, and one of the host makes it all void.
		return bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 5 * time.Second, NoSync: true, NoFreelistSync: true})
	}
	db, err := open()
	if err != nil && !errors.Is(err, bolterrors.ErrTimeout) && !errors.Is(err, os.ErrPermission) {
		if os.Rename(path, path+".damaged") == nil {
			db, err = open()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open record of docker objects: %w", err)
	}
	return &Ledger{db: db}, nil
}

// Close closes the record.
func (l *Ledger) Close() error { return l.db.Close() }

// Put notes that a job has an object, with what is to be known of it.
func (l *Ledger) Put(job, kind, id string, about any) error {
	text, err := json.Marshal(about)
	if err != nil {
		return fmt.Errorf("note docker %s: %w", kind, err)
	}
	return l.update("note", kind, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(job))
		if err != nil {
			return err
		}
		if b, err = b.CreateBucketIfNotExists([]byte(kind)); err != nil {
			return err
		}
		return b.Put([]byte(id), text)
	})
}

// Delete forgets one object; one that is not there is no error.
func (l *Ledger) Delete(job, kind, id string) error {
	return l.update("forget", kind, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(job))
		if b == nil {
			return nil
		}
		if b = b.Bucket([]byte(kind)); b == nil {
			return nil
		}
		return b.Delete([]byte(id))
	})
}

// Remove forgets a job.
func (l *Ledger) Remove(job string) error {
	return l.update("forget", "job", func(tx *bbolt.Tx) error {
		err := tx.DeleteBucket([]byte(job))
		if errors.Is(err, bolterrors.ErrBucketNotFound) {
			return nil
		}
		return err
	})
}

func (l *Ledger) update(what, kind string, f func(*bbolt.Tx) error) error {
	if err := l.db.Update(f); err != nil {
		return fmt.Errorf("%s docker %s: %w", what, kind, err)
	}
	return nil
}

// Each calls f for all objects of a job.
func (l *Ledger) Each(job string, f func(kind, id string, about json.RawMessage) error) error {
	err := l.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(job))
		if b == nil {
			return nil
		}
		return b.ForEachBucket(func(kind []byte) error {
			return b.Bucket(kind).ForEach(func(id, about []byte) error {
				return f(string(kind), string(id), append(json.RawMessage(nil), about...))
			})
		})
	})
	if err != nil {
		return fmt.Errorf("read docker objects of job %s: %w", job, err)
	}
	return nil
}

// Jobs lists the jobs that have had an object.
func (l *Ledger) Jobs() (jobs []string, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
			jobs = append(jobs, string(name))
			return nil
		})
	})
	return jobs, err
}
