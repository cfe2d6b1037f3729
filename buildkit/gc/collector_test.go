package gc_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/buildkit/gc"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/spec"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

type fixture struct {
	*testing.T
	*enginetest.Engine
	collector *gc.Collector
}

func newFixture(t *testing.T) fixture {
	e := enginetest.New(t)
	return fixture{t, e, e.Collector(func(key string) string {
		project, _, _ := strings.Cut(key, "/")
		return project
	})}
}

func (f fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// publish adds a generation of a megabyte.
func (f fixture) publish(key, name string) {
	f.Helper()
	c := f.clone(key)
	f.fill(c.Path(), name)
	_, _, err := c.Publish(f.Context())
	f.must(err)
}

func (f fixture) clone(key string) *generation.Clone {
	f.Helper()
	c, err := f.Generations().Clone(f.Context(), key, "job")
	f.must(err)
	f.must(c.Mount())
	return c
}

func (f fixture) mount(key string) *cachemount.Mount {
	f.Helper()
	m, err := f.Mounts().Acquire(f.Context(), cachemount.Request{Key: key, Job: "job", Sharing: spec.Shared})
	f.must(err)
	return m
}

func (f fixture) fill(dir, name string) {
	f.Helper()
	f.must(os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o644))
}

// keys is what is there.
func (f fixture) keys() string {
	f.Helper()
	items, err := f.collector.List(f.Context())
	f.must(err)
	var keys []string
	for _, i := range items {
		keys = append(keys, string(i.Kind)+" "+i.Key)
		if i.Size < 1<<20 || i.Used.IsZero() || i.Project == "" {
			f.Errorf("item %+v", i)
		}
	}
	return strings.Join(keys, ", ")
}

func (f fixture) expect(what, got, want string) {
	f.Helper()
	if got != want {
		f.Errorf("%s: %s; want %s", what, got, want)
	}
}

func (f fixture) run(p gc.Policy) {
	f.Helper()
	_, err := f.collector.Run(f.Context(), p)
	f.must(err)
}

func TestRun(t *testing.T) {
	f := newFixture(t)
	f.publish("p/old", "1")
	f.publish("p/held", "1")
	f.publish("p/pinned", "1")
	_, err := f.Generations().Pin(t.Context(), "p/pinned", 1, true)
	f.must(err)
	for _, key := range []string{"p/old", "p/held", "p/pinned"} {
		m := f.mount(key)
		f.fill(m.Path(), "1")
		if key == "p/held" {
			defer func() { f.must(m.Release(t.Context())) }()
			continue
		}
		f.must(m.Release(t.Context()))
	}
	f.must(f.Mounts().Pin(t.Context(), "p/pinned", true))
	held := f.clone("p/held")
	all := "mount p/held, mount p/old, mount p/pinned, generation p/held, generation p/old, generation p/pinned"
	f.expect("at first", f.keys(), all)
	f.run(gc.Policy{MaxBytes: 100 << 20, MaxAge: 1e18, Superseded: 3})
	f.expect("with room", f.keys(), all)

	before, err := os.ReadDir(f.Generations().Layers())
	f.must(err)
	f.run(gc.Policy{MaxBytes: 1})
	f.expect("without room", f.keys(), "mount p/held, mount p/pinned, generation p/held, generation p/pinned")
	after, err := os.ReadDir(f.Generations().Layers())
	f.must(err)
	if len(after) > len(before)-2 {
		t.Errorf("%d directories before, %d after", len(before), len(after))
	}
	if _, err := os.Stat(filepath.Join(held.Path(), "1")); err != nil {
		t.Error(err)
	}
	f.must(held.Discard(t.Context()))
	f.must(f.Mounts().Pin(t.Context(), "p/pinned", false))
	f.run(gc.Policy{MaxBytes: 1})
	f.expect("unpinned and let go", f.keys(), "mount p/held, generation p/pinned")
}

// Generations that no rollback needs go with the layers that nothing lies upon.
func TestRunSupersedes(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"1", "2", "3", "4"} {
		f.publish("p/k", name)
	}
	f.run(gc.Policy{Superseded: 1})
	list := f.Generations().List("p/k")
	if len(list) != 2 || list[0].Number != 3 || list[1].Number != 4 {
		t.Errorf("generations %+v", list)
	}
	c := f.clone("p/k")
	for _, name := range []string{"1", "2", "3", "4"} {
		if _, err := os.Stat(filepath.Join(c.Path(), name)); err != nil {
			t.Error(err)
		}
	}
	f.must(c.Discard(t.Context()))
}
