package generation_test

import (
	"fmt"
	"testing"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/generation"
)

// A job publishes again and again, and goes on with what it has published, however deep that lies.
func TestAdvance(t *testing.T) {
	f := newFixture(t)
	c := f.clone("k", "job")
	for n := 1; n <= generation.FlattenNow+2; n++ {
		f.write(c, fmt.Sprint(n), "text")
		f.write(c, "last", fmt.Sprint(n))
		info, next, err := c.Advance(t.Context())
		f.must(err)
		f.must(next.Mount())
		if base, ok := next.Base(); !ok || base != info || info.Number != n || info.Depth >= generation.FlattenNow {
			t.Fatalf("advance %d: published %+v, goes on with a clone of %+v", n, info, base)
		}
		if newest, ok := f.Generations().Newest("k"); !ok || newest.Number != n {
			t.Fatalf("advance %d: the newest is %+v", n, newest)
		}
		f.expect("what it goes on with", f.read(next, "last"), fmt.Sprint(n))
		f.expect("the first file", f.read(next, "1"), "text")
		f.must(c.Discard(t.Context())) // as what was published, it has nothing
		c = next
	}
	f.expect("the newest", f.newest("k", "last"), fmt.Sprint(generation.FlattenNow+2))

	info, next, err := c.Advance(t.Context())
	f.must(err)
	if next != c || info.Number != generation.FlattenNow+2 {
		t.Errorf("with no change: published %+v, another clone: %v", info, next != c)
	}
	f.must(c.Mount())
	f.write(c, "a", "withdrawn")
	f.must(f.Generations().Remove(t.Context(), "k", true))
	if info, next, err := c.Advance(t.Context()); !errdefs.IsAborted(err) || next != nil || info.ID != "" {
		t.Errorf("upon what was withdrawn: published %+v, %v, %v", info, next, err)
	}
	f.must(c.Discard(t.Context()))
}
