// Package archive is what gitlab-runner's helper commands do to files: choose
// them for caches and artifacts by their globs, and pack and unpack zips that
// keep permissions, times and symbolic links. It moves no data over networks.
package archive

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Selection says which files below the working directory are meant.
type Selection struct {
	Paths     []string // globs; a directory stands for all in it
	Exclude   []string
	Untracked bool // what git does not track
	// Say is told what a user wants to know: matches, and paths without any.
	Say func(format string, args ...any)
}

// Files returns the files, sorted and relative to dir.
func (s Selection) Files(dir string) ([]string, error) {
	found := map[string]bool{}
	excluded := map[string]int{}
	add := func(file string) bool {
		if rule, ok := s.excludes(dir, file); ok {
			excluded[rule]++
			return false
		}
		if _, err := os.Lstat(filepath.Join(dir, file)); err != nil {
			return false
		}
		found[file] = true
		return true
	}
	for _, pattern := range s.Paths {
		if err := s.glob(dir, pattern, add); err != nil {
			return nil, err
		}
	}
	if s.Untracked {
		if err := s.untracked(dir, add); err != nil {
			s.Say("untracked: %v", err)
		}
	}
	for rule, n := range excluded {
		s.Say("%s: excluded %d files", rule, n)
	}
	files := make([]string, 0, len(found))
	for file := range found {
		files = append(files, file)
	}
	slices.Sort(files)
	return files, nil
}

func (s Selection) glob(dir, pattern string, add func(string) bool) error {
	inside, err := relative(dir, pattern)
	if err != nil {
		s.Say("%v", err)
		return nil // as the runner: such a path costs the file, not the job
	}
	matches, err := doublestar.Glob(os.DirFS(dir), inside, doublestar.WithNoFollow())
	if err != nil {
		s.Say("%s: %v", pattern, err)
		return nil
	}
	n := 0
	for _, match := range matches {
		err := filepath.WalkDir(filepath.Join(dir, match), func(file string, _ fs.DirEntry, err error) error {
			rel, errRel := filepath.Rel(dir, file)
			if err == nil && errRel == nil && add(filepath.ToSlash(rel)) {
				n++
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("walk %s: %w", match, err)
		}
	}
	if n == 0 {
		s.Say("WARNING: %s: no matching files. Ensure that the artifact path is relative to the working directory (%s)", pattern, dir)
	} else {
		s.Say("%s: found %d matching artifact files and directories", pattern, n)
	}
	return nil
}

func (s Selection) untracked(dir string, add func(string) bool) error {
	cmd := exec.Command("git", "ls-files", "-o", "-z")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	n := 0
	for file := range bytes.SplitSeq(out, []byte{0}) {
		if len(file) > 0 && add(string(file)) {
			n++
		}
	}
	s.Say("untracked: found %d files", n)
	return nil
}

func (s Selection) excludes(dir, file string) (string, bool) {
	for _, pattern := range s.Exclude {
		if inside, err := relative(dir, pattern); err == nil {
			if ok, err := doublestar.Match(inside, file); err == nil && ok {
				return pattern, true
			}
		}
	}
	return "", false
}

// relative makes a pattern relative to dir and refuses one that leads out.
func relative(dir, pattern string) (string, error) {
	base, rest := pattern, ""
	if strings.ContainsAny(pattern, "*?[{") {
		base, rest = doublestar.SplitPattern(pattern)
	}
	if !filepath.IsAbs(base) {
		base = filepath.Join(dir, base)
	}
	rel, err := filepath.Rel(dir, base)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("artifact path is not a subpath of project directory: %s", pattern)
	}
	return filepath.ToSlash(filepath.Join(rel, rest)), nil
}
