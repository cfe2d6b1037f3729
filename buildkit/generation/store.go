package generation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/snapshot"
)

// Depths of chains. The kernel stops at 500 layers.
const (
	flattenAt  = 32  // in the background
	flattenNow = 64  // before it is published
	deepest    = 400 // nothing is published that could not be flattened before
)

// Config says what a store works with.
type Config struct {
	Cache     cache.Manager
	Snapshots snapshot.Snapshotter
	Dir       string // for mounts; containerd must see them
}

// Store keeps the generations of all keys.
type Store struct {
	Config
	boot   string
	empty  string // a directory
	layers string // the directory of all layers
	ready  atomic.Bool

	mu    sync.Mutex
	lines map[string]*line

	background
}

// line is the generations of one key.
type line struct {
	mu   sync.Mutex // held for as long as it takes to write the index, for which no reader waits
	list atomic.Pointer[[]Info]
}

// all is the generations, oldest first; they are never changed in place.
func (l *line) all() []Info {
	if list := l.list.Load(); list != nil {
		return *list
	}
	return nil
}

// set puts others in their place. The caller holds the line.
func (l *line) set(list []Info) { l.list.Store(&list) }

// Open finds the generations that were published. Close ends what it does in the background.
func Open(ctx context.Context, c Config) (*Store, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	s := &Store{Config: c, boot: boot, empty: filepath.Join(c.Dir, "empty"), lines: map[string]*line{}, background: newBackground()}
	// Nobody but root may fill what all first layers are mounted on.
	if err := os.MkdirAll(s.empty, 0o500); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if s.layers, err = s.findLayers(ctx); err != nil {
		return nil, err
	}
	s.start()
	return s, nil
}

// findLayers makes sure that the layers are such as this package handles, and tells where they lie.
func (s *Store) findLayers(ctx context.Context) (dir string, err error) {
	ref, err := s.Cache.New(ctx, nil, nil, cache.WithRecordType(TypeClone), cache.WithDescription("probe"))
	if err != nil {
		return "", fmt.Errorf("make layer: %w", err)
	}
	defer func() { err = errors.Join(err, drop(ctx, ref)) }()
	o, err := s.overlay(ctx, ref.ID())
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(o.Work); err != nil {
		return "", fmt.Errorf("layers are not those of containerd's overlayfs snapshotter: %w", err)
	}
	return filepath.Dir(filepath.Dir(o.Upper)), nil
}

// load reads the index. It drops generations whose data was not on disk when the host went down, since nobody knows
// what is left of them, those that a flat one was to take the place of, and those not yet published, which Retake sees
// to.
func (s *Store) load(ctx context.Context) error {
	found, err := s.Cache.Search(ctx, entryIndex, true)
	if err != nil {
		return fmt.Errorf("search generations: %w", err)
	}
	records := map[string]cache.RefMetadata{}
	for _, md := range found {
		info, err := readInfo(md)
		if err != nil || info.Boot != "" && info.Boot != s.boot || info.Number == 0 {
			if err := retire(md); err != nil {
				return err
			}
			continue
		}
		records[info.ID] = md
		l := s.line(info.Key)
		l.set(append(l.all(), info))
	}
	for _, l := range s.lines {
		list := l.all()
		slices.SortFunc(list, func(a, b Info) int {
			return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(b.Depth, a.Depth))
		})
		for i := 1; i < len(list); i++ {
			if list[i-1].Number != list[i].Number {
				continue
			}
			if err := retire(records[list[i-1].ID]); err != nil {
				return err
			}
			list = slices.Delete(list, i-1, i)
			i--
		}
		l.set(list)
		for _, info := range list {
			s.settleSoon(info)
		}
		if newest, ok := l.newest(); ok && newest.Depth >= flattenAt {
			s.flattenSoon(newest.Key)
		}
	}
	return nil
}

func (s *Store) line(key string) *line {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[key]
	if l == nil {
		l = &line{}
		s.lines[key] = l
	}
	return l
}

// newest is the generation that jobs get.
func (l *line) newest() (Info, bool) {
	for _, info := range slices.Backward(l.all()) {
		if !info.Withdrawn {
			return info, true
		}
	}
	return Info{}, false
}

// Newest is the generation that the next clone of a key gets; false if there is none.
func (s *Store) Newest(key string) (Info, bool) {
	return s.line(key).newest()
}

// List is the generations of a key, oldest first.
func (s *Store) List(key string) []Info {
	return slices.Clone(s.line(key).all())
}

// Published tells what became of a clone that Retake has lost: false if it was not published.
func (s *Store) Published(r Record) (Info, bool) {
	for _, info := range s.List(r.Key) {
		if info.Clone == r.ID {
			return info, true
		}
	}
	return Info{}, false
}

// Keys is the keys that have generations, in order.
func (s *Store) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key, l := range s.lines {
		if len(l.all()) > 0 {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func notFound(key string, number int) error {
	return fmt.Errorf("cache %q has no generation %d: %w", key, number, errdefs.ErrNotFound)
}

// bootID tells one boot of the host from the next.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell this boot from others: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Close ends what the store does in the background. Clones stay as they are, for Retake.
func (s *Store) Close() { s.stop() }
