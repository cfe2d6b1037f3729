// Package gitlab is a stand-in GitLab for tests: as much of the server as a
// gitlab-runner talks to. It hands out jobs, takes their logs, states and
// artifacts, and serves repositories over smart HTTP with LFS. It runs in the
// test's process on a listener of the caller's, needs git on the PATH and
// keeps its files in a temporary directory.
//
// It is not a GitLab: nothing is persistent, there are no users, and it checks
// no more permissions than a runner could trip over.
package gitlab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Server is a running stand-in.
type Server struct {
	url       string
	dir       string
	http      *http.Server
	intercept func(http.ResponseWriter, *http.Request) bool

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever a job changes
	lastID   int64
	projects map[string]*Project
	runners  map[string][]string // token to tags
	jobs     map[int64]*Job
	queue    []*Job
}

// Option changes a server before it starts.
type Option func(*Server)

// WithURL sets the address that runners and jobs are told, where it differs
// from the listener's own.
func WithURL(url string) Option {
	return func(s *Server) { s.url = strings.TrimRight(url, "/") }
}

// WithIntercept lets f answer requests in the server's stead, to play a
// GitLab that is slow, broken or gone. f reports whether it has answered.
func WithIntercept(f func(http.ResponseWriter, *http.Request) bool) Option {
	return func(s *Server) { s.intercept = f }
}

// New serves on l until Close.
func New(l net.Listener, opts ...Option) (*Server, error) {
	dir, err := os.MkdirTemp("", "gitlab")
	if err != nil {
		return nil, fmt.Errorf("create server directory: %w", err)
	}
	s := &Server{
		url:      "http://" + l.Addr().String(),
		dir:      dir,
		changed:  make(chan struct{}),
		lastID:   1000,
		projects: map[string]*Project{},
		runners:  map[string][]string{},
		jobs:     map[int64]*Job{},
	}
	for _, opt := range opts {
		opt(s)
	}
	s.http = &http.Server{Handler: s.handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.http.Serve(l) }() // ends with ErrServerClosed, or the listener's death that Close will report
	return s, nil
}

// URL is the address to give to runners.
func (s *Server) URL() string { return s.url }

// Close stops serving and removes all files.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// AddRunner registers a runner with tags and returns its token. Like in
// GitLab it gets untagged jobs and those whose tags it has all of.
func (s *Server) AddRunner(tags ...string) string {
	token := newToken("glrt-")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runners[token] = tags
	return token
}

// nextID hands out ids of projects, pipelines and jobs, all from one sequence
// so that none can be taken for another. s.mu is held.
func (s *Server) nextID() int64 {
	s.lastID++
	return s.lastID
}

// notify wakes everybody who waits for a job. s.mu is held.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until done, which is called with s.mu held.
func (s *Server) await(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func newToken(prefix string) string { return prefix + rand.Text()[:20] }
