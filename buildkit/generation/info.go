package generation

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/moby/buildkit/cache"
)

// Info is a generation as it was published.
type Info struct {
	ID      string // of BuildKit's record
	Key     string
	Number  int    // counts up per key
	Base    string `json:",omitempty"` // the record that it was cloned from
	Depth   int    // of its chain of layers
	Job     string // that published it
	Created time.Time
	Size    int64  `json:",omitempty"` // of its layers; what one hides of another counts, too
	Note    string `json:",omitempty"` // what its publisher says of it
	Clone   string `json:",omitempty"` // the record that it was until it was published

	Withdrawn bool `json:",omitempty"` // by a rollback: not given to jobs, and its clones are not published
	Pinned    bool `json:",omitempty"` // kept from GC
	// Boot of the host during which it was written, as long as its data may not be on disk.
	Boot string `json:",omitempty"`
}

// A record's info is one value, with which all records of a key are found. Another puts a record into the index of
// what is published: BuildKit leaves index entries behind when a value changes, so they come and go on their own.
const (
	infoValue  = "berth.generation"
	infoIndex  = "berth.generation.all:"
	entryValue = "berth.generation.entry"
	entryIndex = "berth.generation.published:"
)

// hashed is a key as it stands in an index. BuildKit's search takes "a::b" for an entry of "a".
func hashed(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func writeInfo(md cache.RefMetadata, info Info) error {
	b, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("encode generation: %w", err)
	}
	if err := md.SetString(infoValue, string(b), infoIndex+hashed(info.Key)); err != nil {
		return fmt.Errorf("write generation: %w", err)
	}
	return nil
}

func readInfo(md cache.RefMetadata) (Info, error) {
	var info Info
	if err := json.Unmarshal([]byte(md.GetString(infoValue)), &info); err != nil {
		return Info{}, fmt.Errorf("read generation %s: %w", md.ID(), err)
	}
	info.ID = md.ID() // which is not known when it is first written
	return info, nil
}

// enter publishes a record whose info is written.
func enter(md cache.RefMetadata, key string) error {
	if err := md.SetString(entryValue, key, entryIndex+hashed(key)); err != nil {
		return fmt.Errorf("publish generation: %w", err)
	}
	return nil
}

// retire undoes enter.
func retire(md cache.RefMetadata) error {
	if err := md.ClearValueAndIndex(entryValue, ""); err != nil {
		return fmt.Errorf("remove generation: %w", err)
	}
	return nil
}

// record is one that is, or was, a generation of a key, and still has its layer.
type record struct {
	cache.RefMetadata
	info Info
}

// records finds all records of a key, oldest first.
func (s *Store) records(ctx context.Context, key string) ([]record, error) {
	found, err := s.Cache.Search(ctx, infoIndex+hashed(key), false)
	if err != nil {
		return nil, fmt.Errorf("search generations: %w", err)
	}
	var records []record
	for _, md := range found {
		info, err := readInfo(md)
		if err != nil {
			return nil, err
		}
		records = append(records, record{md, info})
	}
	slices.SortFunc(records, func(a, b record) int { return cmp.Compare(a.info.Number, b.info.Number) })
	return records, nil
}

// retire takes a record out of the index.
func (s *Store) retire(ctx context.Context, info Info) error {
	records, err := s.records(ctx, info.Key)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.info.ID == info.ID {
			return retire(r)
		}
	}
	return nil
}
