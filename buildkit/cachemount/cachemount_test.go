package cachemount_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
	"github.com/moby/buildkit/solver/pb"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/buildkit/spec"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

type fixture struct {
	*testing.T
	*enginetest.Engine
}

func newFixture(t *testing.T) fixture { return fixture{t, enginetest.New(t)} }

func (f fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

var key = cachemount.Key("project", "id")

func (f fixture) acquire(job string, sharing spec.Sharing) *cachemount.Mount {
	f.Helper()
	m, err := f.try(job, sharing, time.Minute)
	f.must(err)
	return m
}

func (f fixture) try(job string, sharing spec.Sharing, limit time.Duration) (*cachemount.Mount, error) {
	return f.Mounts().Acquire(f.Context(), cachemount.Request{Key: key, Job: job, Sharing: sharing, Limit: limit})
}

func (f fixture) release(m *cachemount.Mount) {
	f.Helper()
	f.must(m.Release(f.Context()))
}

func (f fixture) write(m *cachemount.Mount, text string) {
	f.Helper()
	f.must(os.WriteFile(filepath.Join(m.Path(), "f"), []byte(text), 0o644))
}

func (f fixture) expect(m *cachemount.Mount, want string) {
	f.Helper()
	b, err := os.ReadFile(filepath.Join(m.Path(), "f"))
	if errors.Is(err, os.ErrNotExist) {
		b = []byte("none")
	} else {
		f.must(err)
	}
	if string(b) != want {
		f.Errorf("%s has %q, want %q", m.Record().Job, b, want)
	}
}

// build is a RUN step with the cache.
func (f fixture) build(ctx context.Context, sharing pb.CacheSharingOpt) (release func(), err error) {
	m := &pb.Mount{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: key, Sharing: sharing}}
	ref, err := mounts.NewMountManager("RUN", f.Worker().CacheManager(), f.Sessions()).MountableCache(ctx, m, nil, nil)
	if err != nil {
		return nil, err
	}
	return func() { f.must(ref.Release(context.WithoutCancel(ctx))) }, nil
}

func TestShared(t *testing.T) {
	f := newFixture(t)
	one, two := f.acquire("one", spec.Shared), f.acquire("two", spec.Shared)
	f.write(one, "one's")
	f.expect(two, "one's")
	done, err := f.build(t.Context(), pb.CacheSharingOpt_SHARED)
	f.must(err)
	f.release(one)
	f.release(one)
	f.release(two)
	three := f.acquire("three", spec.Shared)
	f.expect(three, "one's")
	done()
	f.release(three)
	f.Restart(buildkit.Held{})
	f.release(f.acquire("four", spec.Locked))
	five := f.acquire("five", spec.Locked)
	f.expect(five, "one's")
	f.release(five)
}

func TestLockedWaits(t *testing.T) {
	f := newFixture(t)
	first := f.acquire("first", spec.Locked)
	f.write(first, "first's")
	waits := make(chan cachemount.Wait, 100)
	got := make(chan *cachemount.Mount)
	go func() {
		m, err := f.Mounts().Acquire(f.Context(), cachemount.Request{
			Key: key, Job: "second", Sharing: spec.Locked, Limit: time.Minute,
			Interval: 50 * time.Millisecond, Progress: func(w cachemount.Wait) { waits <- w },
		})
		if err != nil {
			t.Error(err)
		}
		got <- m
	}()
	for range 3 {
		w := <-waits
		if len(w.Holders) != 1 || w.Holders[0].Job != "first" || w.For <= 0 || !strings.Contains(w.String(), `cache "project/id" is in use by first, waiting`) {
			t.Errorf("waits %+v: %s", w, w)
		}
	}
	select {
	case <-got:
		t.Fatal("locked to two at once")
	default:
	}
	f.release(first)
	second := <-got
	f.expect(second, "first's")

	_, err := f.try("third", spec.Locked, 300*time.Millisecond)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "in use by second") {
		t.Errorf("gave up with %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errdefs.ErrAborted)
	_, err = f.Mounts().Acquire(ctx, cachemount.Request{Key: key, Job: "canceled", Sharing: spec.Locked, Limit: time.Minute})
	if !errdefs.IsAborted(err) {
		t.Errorf("canceled with %v", err)
	}
	f.release(second)
	f.release(f.acquire("after", spec.Locked))
	if h := f.Mounts().Holders(key); len(h) != 0 {
		t.Errorf("held by %+v", h)
	}
}

// A RUN step holds a lock that no job has.
func TestLockedByBuild(t *testing.T) {
	f := newFixture(t)
	done, err := f.build(t.Context(), pb.CacheSharingOpt_LOCKED)
	f.must(err)
	if _, err := f.try("job", spec.Locked, 300*time.Millisecond); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "docker build") {
		t.Errorf("error %v", err)
	}
	if _, err := f.try("job", spec.Shared, 300*time.Millisecond); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "docker build") {
		t.Errorf("error %v", err)
	}
	f.one()
	done()
	job := f.acquire("job", spec.Locked)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := f.build(ctx, pb.CacheSharingOpt_LOCKED); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a build got what a job has locked: %v", err)
	}
	f.release(job)
}

// one makes sure that the cache is not forked.
func (f fixture) one() {
	f.Helper()
	list, err := f.Mounts().List(f.Context())
	f.must(err)
	if len(list) != 1 || list[0].Key != key {
		f.Errorf("directories %+v", list)
	}
}

func TestPrivatePool(t *testing.T) {
	f := newFixture(t)
	ask := func(job string, limit time.Duration) (*cachemount.Mount, error) {
		return f.Mounts().Acquire(t.Context(), cachemount.Request{Key: key, Job: job, Sharing: spec.Private, Pool: 2, Limit: limit})
	}
	one, err := ask("one", 0)
	f.must(err)
	two, err := ask("two", 0)
	f.must(err)
	f.write(one, "one's")
	f.expect(two, "none")
	if _, err := ask("three", 300*time.Millisecond); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("error %v", err)
	}
	f.release(one)
	three, err := ask("three", 0)
	f.must(err)
	f.expect(three, "one's")
	f.release(two)
	f.release(three)
}

// One way of sharing at a time, and who comes with another is told.
func TestOneMode(t *testing.T) {
	f := newFixture(t)
	m := f.acquire("holder", spec.Shared)
	for _, other := range []spec.Sharing{spec.Locked, spec.Private} {
		_, err := f.try("other", other, time.Minute)
		if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "is asked for as "+string(other)+", and is shared to holder") {
			t.Errorf("%s: %v", other, err)
		}
	}
	if err := f.Mounts().Check(key, spec.Locked); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "is shared to holder") {
		t.Errorf("a build's: %v", err)
	}
	f.must(f.Mounts().Check(key, spec.Shared))
	f.release(m)
	f.must(f.Mounts().Check(key, spec.Locked))
	f.release(f.acquire("other", spec.Locked))
	f.one()
	for _, r := range []cachemount.Request{{Key: "", Sharing: spec.Shared}, {Key: "a::b", Sharing: spec.Shared}, {Key: "k", Sharing: spec.Snapshot}} {
		if _, err := f.Mounts().Acquire(t.Context(), r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestRetake(t *testing.T) {
	for _, sharing := range []spec.Sharing{spec.Shared, spec.Locked, spec.Private} {
		t.Run(string(sharing), func(t *testing.T) {
			f := newFixture(t)
			if sharing != spec.Locked {
				// Further directories of the key must not be taken for the job's.
				a, b := f.acquire("a", spec.Private), f.acquire("b", spec.Private)
				f.release(a)
				f.release(b)
			}
			lives := f.acquire("lives", sharing)
			f.write(lives, "lives'")
			gone := lives.Record()
			gone.ID = "gone"
			taken := f.Restart(buildkit.Held{Mounts: []cachemount.Record{lives.Record(), gone}})
			if len(taken.Mounts) != 1 || len(taken.Lost.Mounts) != 1 {
				t.Fatalf("taken back: %+v", taken)
			}
			again := taken.Mounts[0]
			f.expect(again, "lives'")
			want := lives.Record()
			want.Since = want.Since.UTC().Round(0) // a journal has no monotonic clock
			if again.Path() != lives.Path() || again.Record() != want {
				t.Errorf("had %+v in %s, has %+v in %s", lives.Record(), lives.Path(), again.Record(), again.Path())
			}
			switch sharing {
			case spec.Shared:
				other := f.acquire("other", sharing)
				f.expect(other, "lives'")
				f.release(other)
			case spec.Locked:
				if _, err := f.try("other", sharing, 200*time.Millisecond); !errdefs.IsUnavailable(err) {
					t.Errorf("error %v", err)
				}
			default:
				other := f.acquire("other", sharing)
				f.expect(other, "none")
				f.release(other)
			}
			f.release(again)
		})
	}
}

// Nothing is lent before surviving jobs have theirs.
func TestNotBeforeRetake(t *testing.T) {
	f := newFixture(t)
	table := cachemount.NewTable(cachemount.Config{Cache: f.Worker().CacheManager(), Sessions: f.Sessions()})
	_, err := table.Acquire(t.Context(), cachemount.Request{Key: key, Job: "early", Sharing: spec.Shared})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}

func TestListRemove(t *testing.T) {
	f := newFixture(t)
	m := f.acquire("job", spec.Shared)
	f.write(m, strings.Repeat("x", 100_000))
	list, err := f.Mounts().List(t.Context())
	f.must(err)
	if len(list) != 1 || list[0].Size < 100_000 || len(list[0].Holders) != 1 || list[0].Used.IsZero() {
		t.Fatalf("directories %+v", list)
	}
	if err := f.Mounts().Remove(t.Context(), list[0].ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove what is held: %v", err)
	}
	f.release(m)
	f.must(f.Mounts().Remove(t.Context(), list[0].ID))
	if err := f.Mounts().Remove(t.Context(), list[0].ID); !errdefs.IsNotFound(err) {
		t.Errorf("remove what is not there: %v", err)
	}
	m = f.acquire("job", spec.Shared)
	f.expect(m, "none")
	f.release(m)
}
