package journal

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// errCorrupt marks a file that is no journal, or is one no longer.
var errCorrupt = errors.New("not a journal")

// load opens the database and reads all of it once. bbolt maps the file into
// memory and trusts what it finds there, so damage shows as a panic.
func load(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			// The database cannot be closed in this state; its file is about
			// to be moved aside.
			db, err = nil, fmt.Errorf("%w: %v", errCorrupt, p)
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoStatistics: true})
	switch {
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	case err != nil:
		return nil, err
	}
	if err := db.View(check); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errCorrupt, err), db.Close())
	}
	return db, nil
}

func check(tx *bbolt.Tx) error {
	// A short file is found here, since reading the missing part of the map
	// in another goroutine, where Check works, would end the process.
	info, err := os.Stat(tx.DB().Path())
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("cut off at %d of %d bytes", info.Size(), tx.Size())
	}
	var first error
	for err := range tx.Check() {
		if first == nil {
			first = err
		}
	}
	return first
}
