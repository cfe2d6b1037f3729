// Package imagegc removes images that nobody has used for long, or that there
// is no room for: the longest unused first, and never one that is in use.
//
// It removes names; containerd deletes what no name, lease or container holds
// any more. Only what is there by Berth (package lastuse) is its to remove.
// What build steps left is BuildKit's, and package gc's to collect.
package imagegc

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Image is a name of an image. One image may have several.
type Image struct {
	Name   string
	Target digest.Digest
	Used   time.Time
	// Ours tells that Berth may remove it.
	Ours bool
	// Users have it: jobs by their keys, containers, leases.
	Users []string
	// Size is of all that the image consists of, compressed and unpacked,
	// Unique of what no other image, cache or container has a part in.
	Size, Unique int64
}

// dangling begins docker's names for images without one.
const dangling = "moby-dangling@"

// Parts are the sizes of what an image consists of on the node: blobs and
// snapshots, for all platforms that are there.
type Parts map[string]int64

// Stock is all images of the node.
type Stock struct {
	Images []Image
	Parts  map[digest.Digest]Parts
	// Held are parts that stay without any image: those of caches and
	// containers.
	Held map[string]bool
}

// Policy says what is kept. Zero is no limit.
type Policy struct {
	MaxSize int64         // of all images that are Berth's
	MinFree int64         // on the disk
	MaxAge  time.Duration // since the last use
	// MinAge is how long an image is kept after its last use, whatever room
	// there is.
	MinAge time.Duration
	// Only tells which images may go; nil for all.
	Only func(Image) bool
}

// Why an image goes.
const (
	TooOld   = "unused for max_age"
	Unnamed  = "no name, and no job that made it"
	TooLarge = "images take more than max_size"
	NoRoom   = "less than min_free is left on the disk"
)

// Choice is an image that is to go.
type Choice struct {
	Image
	Why string
	// Frees is what becomes free by it, after those chosen before.
	Frees int64
}

// removable tells whether an image may go at all.
func (p Policy) removable(i Image, now time.Time) bool {
	return i.Ours && len(i.Users) == 0 && now.Sub(i.Used) >= p.MinAge && (p.Only == nil || p.Only(i))
}

// expired tells why an image goes whatever room there is.
func (p Policy) expired(i Image, now time.Time) (why string) {
	switch {
	case strings.HasPrefix(i.Name, dangling):
		return Unnamed
	case p.MaxAge > 0 && now.Sub(i.Used) > p.MaxAge:
		return TooOld
	}
	return ""
}

// plan chooses the images to remove, where free bytes are left on the disk.
func (s *Stock) plan(p Policy, free int64, now time.Time) (chosen []Choice) {
	u := s.use()
	choose := func(i Image, why string) {
		frees := u.drop(i)
		free += frees
		chosen = append(chosen, Choice{i, why, frees})
	}
	byTarget := map[digest.Digest][]Image{}
	kept := map[digest.Digest]bool{}
	for _, i := range s.Images {
		switch removable := p.removable(i, now); {
		case removable && p.expired(i, now) != "":
			choose(i, p.expired(i, now))
		case removable:
			byTarget[i.Target] = append(byTarget[i.Target], i)
		default:
			kept[i.Target] = true // with another name it would be there all the same
		}
	}
	var groups [][]Image
	for target, group := range byTarget {
		if !kept[target] {
			groups = append(groups, group)
		}
	}
	lastUse := func(group []Image) time.Time {
		return slices.MaxFunc(group, func(a, b Image) int { return a.Used.Compare(b.Used) }).Used
	}
	slices.SortFunc(groups, func(a, b []Image) int {
		return cmp.Or(lastUse(a).Compare(lastUse(b)), strings.Compare(a[0].Name, b[0].Name))
	})
	for _, group := range groups {
		why := ""
		switch {
		case p.MinFree > 0 && free < p.MinFree:
			why = NoRoom
		case p.MaxSize > 0 && u.total > p.MaxSize:
			why = TooLarge
		default:
			return chosen
		}
		for _, i := range group {
			choose(i, why)
		}
	}
	return chosen
}

// use counts who has which part.
type use struct {
	stock *Stock
	names map[string]int // of images that have the part
	ours  map[string]int // of those that are Berth's
	total int64          // of the parts that Berth's images have
}

func (s *Stock) use() *use {
	u := &use{stock: s, names: map[string]int{}, ours: map[string]int{}}
	for _, i := range s.Images {
		for part, size := range s.Parts[i.Target] {
			u.names[part]++
			if !i.Ours {
				continue
			}
			if u.ours[part]++; u.ours[part] == 1 {
				u.total += size
			}
		}
	}
	return u
}

// drop takes a name away, and tells what becomes free by it.
func (u *use) drop(i Image) (frees int64) {
	for part, size := range u.stock.Parts[i.Target] {
		if u.names[part]--; u.names[part] == 0 && !u.stock.Held[part] {
			frees += size
		}
		if u.ours[part]--; u.ours[part] == 0 {
			u.total -= size
		}
	}
	return frees
}

// measure gives all images their sizes.
func (s *Stock) measure() {
	names := map[digest.Digest]int{}
	for _, i := range s.Images {
		names[i.Target]++
	}
	u := s.use()
	for at := range s.Images {
		i := &s.Images[at]
		i.Size, i.Unique = 0, 0
		for part, size := range s.Parts[i.Target] {
			i.Size += size
			if u.names[part] == names[i.Target] && !s.Held[part] {
				i.Unique += size
			}
		}
	}
}
