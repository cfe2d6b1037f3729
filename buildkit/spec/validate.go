package spec

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	maxID         = 200
	maxTarget     = 1024
	expectPublish = "is empty; expected never, protected, scheduled or always"
)

var (
	// Colons stay out: BuildKit puts them between an id and what follows it in its indexes.
	idText = regexp.MustCompile(`^[A-Za-z0-9._/@+=~-]+$`)
	// contentKey stands for the hash of a file or tree of the commit; its caller replaces it and validates again.
	contentKey = regexp.MustCompile(`\$\{(?:tree|file):[^{}$\x00-\x1f]+\}`)
)

// HasContentKey tells whether the id holds ${tree:PATH} or ${file:PATH}, to be replaced after checkout.
func (c Cache) HasContentKey() bool { return contentKey.MatchString(c.ID) }

// Validate says what is wrong with a cache, the first fault alone.
func (c Cache) Validate() error {
	if err := ValidateID(c.ID); err != nil {
		return err
	}
	if err := validateTarget(c.Target); err != nil {
		return err
	}
	switch c.Sharing {
	case Snapshot, Shared, Locked, Private:
	default:
		return fault("sharing", fmt.Sprintf("is %q; expected snapshot, shared, locked or private", c.Sharing))
	}
	switch c.Publish {
	case "", Never, Protected, Always:
	default:
		return fault("publish", fmt.Sprintf("is %q; expected never, protected, scheduled or always", c.Publish))
	}
	return c.validateTogether()
}

// validateTogether is about fields that each are right.
func (c Cache) validateTogether() error {
	switch {
	case c.Pool < 0 || c.Pool > MaxPool:
		return fault("pool", fmt.Sprintf("is %d; expected a number from 1 to %d", c.Pool, MaxPool))
	case c.Pool > 0 && c.Sharing != Private:
		return fault("pool", fmt.Sprintf("counts the copies of a private cache, and this one is %s; expected sharing=private with it", c.Sharing))
	case c.Publish != "" && c.Sharing != Snapshot:
		return fault("publish", fmt.Sprintf("is about snapshots, and the writes to a %s cache are seen at once; expected sharing=snapshot with it", c.Sharing))
	case c.ReadOnly && c.Publish != "" && c.Publish != Never:
		return fault("publish", fmt.Sprintf("is %q, and a readonly cache has nothing to publish; expected one of the two alone", c.Publish))
	}
	return nil
}

// ValidateID says what is wrong with an id. An id never leaves the namespace that it is put in.
func ValidateID(id string) error {
	if id == "" {
		return fault("id", "is missing; expected id=NAME")
	}
	if len(id) > maxID {
		return fault("id", fmt.Sprintf("is %d bytes long; expected at most %d", len(id), maxID))
	}
	plain := contentKey.ReplaceAllString(id, "x")
	if !idText.MatchString(plain) {
		return fault("id", fmt.Sprintf("is %q; expected letters, digits and ._/@+=~-, and ${tree:PATH} or ${file:PATH}", id))
	}
	for part := range strings.SplitSeq(plain, "/") {
		if part == "." || part == ".." {
			return fault("id", fmt.Sprintf("is %q; expected no . or .. between slashes", id))
		}
	}
	return nil
}

func validateTarget(target string) error {
	switch {
	case target == "":
		return fault("target", "is missing; expected target=PATH, the directory in the job's container")
	case len(target) > maxTarget:
		return fault("target", fmt.Sprintf("is %d bytes long; expected at most %d", len(target), maxTarget))
	case !utf8.ValidString(target) || strings.ContainsFunc(target, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fault("target", fmt.Sprintf("is %q; expected a path of printable characters", target))
	}
	clean := path.Clean(target)
	if clean == "/" || clean == "." {
		return fault("target", fmt.Sprintf("is %q; expected a directory below it: a cache cannot take its place", target))
	}
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return fault("target", fmt.Sprintf("is %q; expected an absolute path, or one inside the project's directory", target))
	}
	return nil
}
