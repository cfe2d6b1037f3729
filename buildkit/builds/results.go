package builds

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

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

func (s *Service) openResults(namespace string) (*resultStore, error) {
	db, err := bboltcachestorage.NewStore(filepath.Join(s.resultDir(), namespace+".db"))
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
