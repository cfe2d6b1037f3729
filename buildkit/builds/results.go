package builds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/worker"
)

// results are what steps made, by namespace; those of jobs that are there are open.
type results struct {
	open func(namespace string) (*resultStore, error)
	mu   sync.Mutex
	m    map[string]*resultStore
}

type resultStore struct {
	solver.CacheManager
	db    *bboltcachestorage.Store
	users int
}

// use opens the results of a namespace, until they are no longer used.
func (r *results) use(namespace string) (_ solver.CacheManager, release func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string]*resultStore{}
	}
	st := r.m[namespace]
	if st == nil {
		if st, err = r.open(namespace); err != nil {
			return nil, nil, err
		}
		r.m[namespace] = st
	}
	st.users++
	return st.CacheManager, func() error { return r.release(namespace, st) }, nil
}

func (r *results) release(namespace string, st *resultStore) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.users--; st.users > 0 {
		return nil
	}
	delete(r.m, namespace)
	if err := st.db.Close(); err != nil {
		return fmt.Errorf("close results of builds: %w", err)
	}
	return nil
}

// Forget removes what is known of the steps of those that have not built for so long, and tells whose it was. The
// results themselves are BuildKit's records, which go on their own.
func (s *Service) Forget(age time.Duration) (namespaces []string, err error) {
	s.results.mu.Lock()
	defer s.results.mu.Unlock()
	entries, err := os.ReadDir(s.resultDir())
	if err != nil {
		return nil, fmt.Errorf("list results of builds: %w", err)
	}
	for _, entry := range entries {
		namespace, is := strings.CutSuffix(entry.Name(), resultSuffix)
		if !is || s.results.m[namespace] != nil {
			continue
		}
		// Written to whenever it is opened.
		info, err := entry.Info()
		if err == nil && time.Since(info.ModTime()) <= age {
			continue
		}
		if err == nil {
			err = os.Remove(filepath.Join(s.resultDir(), entry.Name()))
		}
		if err != nil {
			return namespaces, fmt.Errorf("remove results of builds: %w", err)
		}
		namespaces = append(namespaces, namespace)
	}
	return namespaces, nil
}

const resultSuffix = ".db"

func (s *Service) openResults(namespace string) (*resultStore, error) {
	db, err := bboltcachestorage.NewStore(filepath.Join(s.resultDir(), namespace+resultSuffix))
	if err != nil {
		return nil, fmt.Errorf("open results of builds: %w", err)
	}
	workers := &worker.Controller{}
	if err := workers.Add(s.engine.Worker()); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	// Not of a job: others of the namespace go on with it.
	m := solver.NewCacheManager(context.Background(), namespace, db, worker.NewCacheResultStorage(workers))
	return &resultStore{CacheManager: m, db: db}, nil
}
