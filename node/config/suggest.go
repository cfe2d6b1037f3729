package config

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// suggest is the end of a sentence about an unknown name: the known one that
// was probably meant, or all of them where they are few.
func suggest(name string, known iter.Seq[string]) string {
	names := slices.Sorted(known)
	best, least := "", 1+max(min(len(name)/2, 2), len(name)/3)
	for _, n := range names {
		if d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(n)); d < least {
			best, least = n, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %q?", best)
	case len(names) <= 12:
		return "; known are " + strings.Join(names, ", ")
	}
	return ""
}
