package imagegc

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var now = time.Unix(1_800_000_000, 0)

const day = 24 * time.Hour

// image is one of Berth's with parts "base 40,top 10"; the first word of each
// names it. Images of the same parts are one.
func (s *Stock) image(name, parts string, ago time.Duration) *Image {
	target := digest.FromString(parts)
	if s.Parts == nil {
		s.Parts, s.Held = map[digest.Digest]Parts{}, map[string]bool{}
	}
	s.Parts[target] = Parts{}
	for part := range strings.SplitSeq(parts, ",") {
		name, size, _ := strings.Cut(part, " ")
		for _, digit := range size {
			s.Parts[target][name] = s.Parts[target][name]*10 + int64(digit-'0')
		}
	}
	s.Images = append(s.Images, Image{Name: name, Target: target, Used: now.Add(-ago), Ours: true})
	return &s.Images[len(s.Images)-1]
}

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		stock  func(*Stock)
		policy Policy
		free   int64
		want   string // "name frees why-word", in order
	}{
		"no limits": {stock: func(s *Stock) { s.image("a", "x 10", 900*day) }},
		"by age": {
			stock: func(s *Stock) {
				s.image("old", "x 10", 15*day)
				s.image("young", "y 10", 13*day)
			},
			policy: Policy{MaxAge: 14 * day}, want: "old 10 unused",
		},
		"never what is in use": {
			stock: func(s *Stock) {
				s.image("job", "x 10", 90*day).Users = []string{"j1"}
				s.image("free", "y 10", 80*day)
			},
			policy: Policy{MaxAge: 14 * day, MinFree: 1000, MaxSize: 1}, want: "free 10 unused",
		},
		"never the operator's": {
			stock:  func(s *Stock) { s.image("his", "x 10", 90*day).Ours = false },
			policy: Policy{MaxAge: 14 * day, MinFree: 1000, MaxSize: 1},
		},
		"nor what was just used": {
			stock:  func(s *Stock) { s.image("new", "x 10", time.Minute) },
			policy: Policy{MaxAge: time.Second, MinFree: 1000, MaxSize: 1, MinAge: time.Hour},
		},
		"only some": {
			stock: func(s *Stock) {
				s.image("a", "x 10", 90*day)
				s.image("b", "y 10", 80*day)
			},
			policy: Policy{MaxAge: day, Only: func(i Image) bool { return i.Name == "b" }}, want: "b 10 unused",
		},
		"longest unused first, as much as needed": {
			stock: func(s *Stock) {
				s.image("new", "x 60", 1*day)
				s.image("old", "y 60", 9*day)
				s.image("mid", "z 60", 5*day)
			},
			policy: Policy{MaxSize: 120}, want: "old 60 images",
		},
		"room on the disk": {
			stock: func(s *Stock) {
				s.image("new", "x 40", 1*day)
				s.image("old", "y 40", 9*day)
				s.image("mid", "z 40", 5*day)
			},
			policy: Policy{MinFree: 100}, free: 50, want: "old 40 less, mid 40 less",
		},
		"there is room": {
			stock: func(s *Stock) { s.image("a", "x 40", 9*day) }, policy: Policy{MinFree: 100}, free: 100,
		},
		"age makes room": {
			stock: func(s *Stock) {
				s.image("old", "x 50", 15*day)
				s.image("new", "y 50", 2*day)
			},
			policy: Policy{MaxAge: 14 * day, MinFree: 100, MaxSize: 60}, free: 50, want: "old 50 unused",
		},
		"what others share is not freed, but with the last": {
			stock: func(s *Stock) {
				s.image("base", "b 40", 9*day)
				s.image("app", "b 40,t 10", 5*day)
				s.image("other", "o 40", 1*day)
			},
			policy: Policy{MinFree: 50}, want: "base 0 less, app 50 less",
		},
		"the operator's and caches' parts stay": {
			stock: func(s *Stock) {
				s.image("base", "b 40", 9*day).Ours = false
				s.image("app", "b 40,c 20,t 10", 5*day)
				s.Held["c"] = true
			},
			policy: Policy{MinFree: 100}, want: "app 10 less",
		},
		"the operator's do not count": {
			stock: func(s *Stock) {
				s.image("his", "b 400", 9*day).Ours = false
				s.image("app", "t 10", 5*day)
			},
			policy: Policy{MaxSize: 100},
		},
		"shared parts count once": {
			stock: func(s *Stock) {
				s.image("a", "b 90,x 1", 9*day)
				s.image("b", "b 90,y 1", 5*day)
			},
			policy: Policy{MaxSize: 100},
		},
		"all names of an image go by its last use": {
			stock: func(s *Stock) {
				s.image("one", "x 40", 9*day)
				s.image("two", "x 40", 1*day)
				s.image("mid", "y 40", 5*day)
			},
			policy: Policy{MaxSize: 40}, want: "mid 40 images",
		},
		"all names of an image go together": {
			stock: func(s *Stock) {
				s.image("one", "x 40", 9*day)
				s.image("two", "x 40", 8*day)
				s.image("mid", "y 40", 5*day)
			},
			policy: Policy{MaxSize: 40}, want: "one 0 images, two 40 images",
		},
		"for room no name goes of an image that stays": {
			stock: func(s *Stock) {
				s.image("his", "x 40", 90*day).Ours = false
				s.image("alias", "x 40", 80*day)
				s.image("used", "y 40", 70*day).Users = []string{"j1"}
				s.image("used too", "y 40", 60*day)
				s.image("new", "z 40", 5*day)
			},
			policy: Policy{MinFree: 1000}, want: "new 40 less",
		},
		"but by age": {
			stock: func(s *Stock) {
				s.image("alias", "x 40", 80*day)
				s.image("new", "x 40", 5*day)
			},
			policy: Policy{MaxAge: 14 * day}, want: "alias 0 unused",
		},
		"without a name": {
			stock: func(s *Stock) {
				s.image(dangling+"sha256:0", "x 40", 2*time.Hour)
				s.image(dangling+"sha256:1", "y 40", 2*time.Hour).Users = []string{"j1"}
				s.image(dangling+"sha256:2", "z 40", 2*time.Minute)
				s.image(dangling+"sha256:3", "u 40", 90*day).Ours = false
			},
			policy: Policy{MaxAge: 14 * day, MinAge: time.Hour}, want: dangling + "sha256:0 40 no",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s Stock
			c.stock(&s)
			var got []string
			for _, choice := range s.plan(c.policy, c.free, now) {
				why, _, _ := strings.Cut(choice.Why, " ")
				got = append(got, strings.Join([]string{choice.Name, strconv.FormatInt(choice.Frees, 10), why}, " "))
			}
			require.Equal(t, c.want, strings.Join(got, ", "))
		})
	}
}

func TestMeasure(t *testing.T) {
	var s Stock
	s.image("base", "b 40", day)
	s.image("app", "b 40,t 10,c 5", day)
	s.image("alias", "b 40,t 10,c 5", day)
	s.Held["c"] = true
	s.measure()
	slices.SortFunc(s.Images, func(a, b Image) int { return cmp.Compare(a.Name, b.Name) })
	for at, want := range [][2]int64{{55, 10}, {55, 10}, {40, 0}} {
		require.Equal(t, want, [2]int64{s.Images[at].Size, s.Images[at].Unique}, s.Images[at].Name)
	}
}
