package gc

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/buildkit/generation"
)

var now = time.Unix(1_800_000_000, 0)

// item is of a project "p" and has the key "p/k".
func item(key string, size int64, daysAgo int) Item {
	project, _, _ := strings.Cut(key, "/")
	return Item{Key: key, Project: project, Size: size, Used: now.Add(-time.Duration(daysAgo) * 24 * time.Hour)}
}

func held(i Item) Item      { i.Held = true; return i }
func pinned(i Item) Item    { i.Pinned = true; return i }
func directory(i Item) Item { i.Kind = Directory; return i }

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		items  []Item
		policy Policy
		free   int64
		want   string
	}{
		"no limits":                   {items: []Item{item("a/1", 100, 900)}},
		"fits":                        {items: []Item{item("a/1", 60, 9), item("b/1", 40, 8)}, policy: Policy{MaxBytes: 100}},
		"oldest first":                {items: []Item{item("a/new", 60, 1), item("a/old", 60, 9), item("a/mid", 60, 5)}, policy: Policy{MaxBytes: 100}, want: "a/old a/mid"},
		"as much as needed":           {items: []Item{item("a/new", 60, 1), item("a/old", 60, 9), item("a/mid", 60, 5)}, policy: Policy{MaxBytes: 120}, want: "a/old"},
		"never what is held":          {items: []Item{held(item("a/old", 90, 9)), item("a/new", 60, 1)}, policy: Policy{MaxBytes: 100}, want: "a/new"},
		"never what is pinned":        {items: []Item{pinned(item("a/old", 90, 9)), item("a/new", 60, 1)}, policy: Policy{MaxBytes: 10}, want: "a/new"},
		"by age":                      {items: []Item{item("a/1", 1, 31), item("a/2", 1, 29), pinned(item("a/3", 1, 99)), held(item("a/4", 1, 99))}, policy: Policy{MaxAge: 30 * 24 * time.Hour}, want: "a/1"},
		"age makes room":              {items: []Item{item("a/1", 50, 31), item("a/2", 50, 2)}, policy: Policy{MaxAge: 30 * 24 * time.Hour, MaxBytes: 60}, want: "a/1"},
		"who has more gives first":    {items: []Item{item("a/1", 10, 99), item("b/1", 50, 1), item("b/2", 50, 2)}, policy: Policy{MaxBytes: 100}, want: "b/2"},
		"what others leave":           {items: []Item{item("a/1", 10, 9), item("b/1", 90, 1)}, policy: Policy{MaxBytes: 100}},
		"down to the share, then all": {items: []Item{item("a/1", 25, 9), held(item("b/1", 55, 1)), item("b/2", 40, 1)}, policy: Policy{MaxBytes: 60}, want: "b/2 a/1"},
		"weights":                     {items: []Item{item("a/1", 40, 1), item("b/1", 60, 9), item("b/2", 20, 8)}, policy: Policy{MaxBytes: 100, Weight: func(p string) int { return map[string]int{"a": 1, "b": 4}[p] }}, want: "a/1"},
		"free space is there":         {items: []Item{item("a/1", 40, 1)}, policy: Policy{MinFree: 100}, free: 100},
		"free space is lacking":       {items: []Item{item("a/1", 40, 1), item("a/2", 40, 2), item("a/3", 40, 3)}, policy: Policy{MinFree: 100}, free: 50, want: "a/3 a/2"},
		"more than there is":          {items: []Item{item("a/1", 40, 1), held(item("a/2", 40, 2))}, policy: Policy{MinFree: 1000}, free: 50, want: "a/1"},
		"all kinds alike":             {items: []Item{item("a/1", 40, 1), directory(item("a/2", 40, 3)), directory(held(item("a/3", 40, 9))), item("a/4", 40, 2)}, policy: Policy{MaxBytes: 100}, want: "a/2 a/4"},
		"age frees":                   {items: []Item{item("a/1", 60, 31), item("a/2", 40, 2)}, policy: Policy{MinFree: 100, MaxAge: 30 * 24 * time.Hour}, free: 50, want: "a/1"},
	} {
		var got []string
		for _, i := range plan(c.items, c.policy, c.free, now) {
			got = append(got, i.Key)
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: deletes %q, want %q", name, text, c.want)
		}
	}
}

func TestSuperseded(t *testing.T) {
	list := func(mark string) (list []generation.Info) {
		for n, m := range mark {
			list = append(list, generation.Info{
				Number: n + 1, Withdrawn: m == 'w', Pinned: m == 'p', Created: now.Add(-time.Duration(len(mark)-n) * time.Hour),
			})
		}
		return list
	}
	for _, c := range []struct {
		marks  string
		policy Policy
		want   []int
	}{
		{"", Policy{}, nil},
		{"....", Policy{}, []int{3, 2, 1}},
		{"....", Policy{Superseded: 2}, []int{1}},
		{"p...", Policy{}, []int{3, 2}},
		{"..ww", Policy{Superseded: 1}, nil},
		{".....", Policy{Superseded: 9, MaxAge: 150 * time.Minute}, []int{3, 2, 1}},
		{"ww", Policy{Superseded: 0}, []int{1}},
	} {
		if got := superseded(list(c.marks), c.policy, now); !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, want %v", c.marks, got, c.want)
		}
	}
}
