package generation

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// background is the work for which no job waits.
type background struct {
	deep    *pending // keys to flatten
	written *pending // keys with generations that may not be on disk
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

// pending is a set of keys that wakes who works on them.
type pending struct {
	mu    sync.Mutex
	set   map[string]struct{}
	ready chan struct{}
}

func newPending() *pending {
	return &pending{set: map[string]struct{}{}, ready: make(chan struct{}, 1)}
}

func (p *pending) add(key string) {
	p.mu.Lock()
	p.set[key] = struct{}{}
	p.mu.Unlock()
	select {
	case p.ready <- struct{}{}:
	default:
	}
}

// take empties the set.
func (p *pending) take() map[string]struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := p.set
	p.set = map[string]struct{}{}
	return set
}

func newBackground() background {
	return background{deep: newPending(), written: newPending()}
}

func (s *Store) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.done.Go(func() { s.flattening(ctx) })
	s.done.Go(func() { s.settling(ctx) })
}

func (s *Store) stop() {
	s.cancel()
	s.done.Wait()
}

// dropSoon releases a record for which nobody waits: BuildKit writes down when it was last used.
func (s *Store) dropSoon(ctx context.Context, ref cache.Ref) {
	s.done.Go(func() {
		if err := drop(ctx, ref); err != nil {
			logrus.WithError(err).Warn("cannot release a layer")
		}
	})
}

func (s *Store) flattenSoon(key string) { s.deep.add(key) }

func (s *Store) settleSoon(info Info) {
	if info.Boot != "" {
		s.written.add(info.Key)
	}
}

// settleDelay is how long published data may wait to be written: the job that published goes on right then, and would
// find the disk busy.
const settleDelay = 5 * time.Second

// settling sees to it that published data reaches the disk, and notes that it has. Waiting for it would take a job as
// long as everything that the node has yet to write.
func (s *Store) settling(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.written.ready:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settleDelay):
		}
		if err := s.settle(ctx); err != nil && context.Cause(ctx) == nil {
			logrus.WithError(err).Warn("cannot write caches to disk")
		}
	}
}

func (s *Store) settle(ctx context.Context) error {
	var before []Info
	for key := range s.written.take() {
		for _, info := range s.List(key) {
			if info.Boot != "" {
				before = append(before, info)
			}
		}
	}
	if len(before) == 0 {
		return nil
	}
	if err := s.sync(); err != nil {
		return err
	}
	for _, info := range before {
		if err := s.settled(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// sync writes out the disk that holds the layers.
func (s *Store) sync() error {
	dir, err := os.Open(s.layers)
	if err != nil {
		return fmt.Errorf("open layers: %w", err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync layers: %w", err)
	}
	return nil
}

// settled notes that a generation is on disk.
func (s *Store) settled(ctx context.Context, info Info) error {
	l := s.line(info.Key)
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.Clone(l.all())
	for i := range list {
		if list[i].ID != info.ID {
			continue
		}
		list[i].Boot = ""
		if err := s.rewrite(ctx, info.Key, func(i *Info) {
			if i.ID == info.ID {
				i.Boot = ""
			}
		}); err != nil {
			return err
		}
		l.set(list)
	}
	return nil
}
