package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Selection says what of a project directory a cache holds, in the terms of gitlab-runner's cache-archiver.
type Selection struct {
	// Dir is the project directory as the job knows it: absolute paths below it are meant relative to it.
	Dir string
	// Paths are files, directories with all below, and doublestar patterns for either.
	Paths []string
	// Untracked is what `git ls-files --others -z` says there; nil if untracked files are not wanted.
	Untracked []byte
}

// meta are the characters with which gitlab-runner takes a path for a pattern. The library takes a backslash too.
const meta = "*?[{"

// relative is a path or pattern relative to the project directory.
func (s Selection) relative(path string) (string, error) {
	if filepath.Clean(path) == filepath.Clean(s.Dir) {
		return ".", nil
	}
	base, pattern := path, ""
	if strings.ContainsAny(path, meta) {
		base, pattern = doublestar.SplitPattern(path)
	}
	rel, err := s.inside(base)
	if err != nil {
		return "", err
	}
	return filepath.Join(rel, pattern), nil
}

func (s Selection) inside(path string) (string, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.Dir, path)
	}
	rel, err := filepath.Rel(s.Dir, path)
	if err != nil {
		return "", err
	}
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("%s is outside of the project directory", path)
	}
	return rel, nil
}

// picked is a selection as a tree of names.
type picked struct {
	all  bool // with everything below
	self bool
	sub  map[string]*picked
}

// add picks a clean path.
func (p *picked) add(path string) *picked {
	if path == "." {
		return p
	}
	for name := range strings.SplitSeq(path, "/") {
		next := p.sub[name]
		if next == nil {
			next = &picked{}
			if p.sub == nil {
				p.sub = map[string]*picked{}
			}
			p.sub[name] = next
		}
		p = next
	}
	return p
}

// below is what is picked of a name in the directory; nil for nothing.
func (p *picked) below(name string) *picked {
	if p.all {
		return p
	}
	return p.sub[name]
}

func (p *picked) wanted() bool { return p.all || p.self }

// plain lists the paths if they are nothing but paths, none of them below another or the project directory itself.
func (s Selection) plain() (paths []string, ok bool) {
	if s.Untracked != nil {
		return nil, false
	}
	root := &picked{}
	for _, path := range s.Paths {
		rel, err := s.relative(path)
		if path == "" || err != nil {
			continue // a warning, later
		}
		if rel == "." || strings.ContainsAny(rel, meta+`\`) {
			return nil, false
		}
		root.add(rel).all = true
	}
	return root.tops(nil, ""), true
}

// tops lists the uppermost paths that are picked with all below.
func (p *picked) tops(paths []string, at string) []string {
	if p.all {
		return append(paths, at)
	}
	for _, name := range sorted(p.sub) {
		paths = p.sub[name].tops(paths, filepath.Join(at, name))
	}
	return paths
}

// resolve finds what is selected in a view. Where gitlab-runner would warn, so does this.
func (s Selection) resolve(ctx context.Context, v *layer.View) (_ *picked, warnings []string, err error) {
	root := &picked{}
	warnings = s.complaints()
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	for _, path := range s.Paths {
		rel, err := s.relative(path)
		if path == "" || err != nil {
			continue
		}
		found, err := s.match(ctx, v, rel, root)
		switch {
		case errors.Is(err, doublestar.ErrBadPattern), errdefs.IsFailedPrecondition(err):
			warn("%s: %v", path, err)
		case err != nil:
			return nil, nil, err
		case !found:
			warn("%s", missing(path, s.Dir))
		}
	}
	if s.Untracked != nil {
		s.untracked(root, warn)
	}
	if root.git() {
		warn("%s", gitWarning)
	}
	return root, warnings, nil
}

const gitWarning = "Part of .git directory is on the list of files to archive. This may introduce unexpected problems."

func (p *picked) git() bool { return p.all || p.sub[".git"] != nil }

// complaints are the warnings about paths that mean nothing.
func (s Selection) complaints() (warnings []string) {
	for _, path := range s.Paths {
		if path == "" {
			warnings = append(warnings, "No matching files. Path is empty.")
		} else if _, err := s.relative(path); err != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %v", path, err))
		}
	}
	return warnings
}

func missing(path, dir string) string {
	return fmt.Sprintf("%s: no matching files. Ensure that the path is relative to the project directory (%s).", path, dir)
}

func (s Selection) untracked(root *picked, warn func(string, ...any)) {
	found := false
	for name := range bytes.SplitSeq(s.Untracked, []byte{0}) {
		if len(name) == 0 {
			continue
		}
		rel, err := s.inside(string(name))
		if err != nil {
			warn("%s: not supported: outside build directory", name)
			continue
		}
		root.add(rel).self = true
		found = true
	}
	if !found {
		warn("untracked: no files")
	}
}

// match picks what a relative path or pattern means.
func (s Selection) match(ctx context.Context, v *layer.View, rel string, root *picked) (bool, error) {
	if !strings.ContainsAny(rel, meta+`\`) {
		found, err := exists(v, rel)
		if found {
			root.add(rel).all = true
		}
		return found, err
	}
	if !doublestar.ValidatePattern(rel) {
		return false, doublestar.ErrBadPattern
	}
	base, _ := doublestar.SplitPattern(rel)
	dir, err := descend(v, base)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	g := glob{pattern: rel, root: root, deepest: 1 + strings.Count(rel, "/")}
	if strings.Contains(rel, "**") {
		g.deepest = -1
	}
	err = g.walk(ctx, dir, base)
	return g.found, err
}

// glob is a search for what matches a pattern.
type glob struct {
	pattern string
	root    *picked
	deepest int // number of names in the longest path that can match; -1 for any
	found   bool
}

func (g *glob) walk(ctx context.Context, v *layer.View, at string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if g.try(at) || g.deepest >= 0 && at != "." && 1+strings.Count(at, "/") >= g.deepest {
		return nil
	}
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(at, e.Name)
		if !e.IsDir() {
			g.try(path)
			continue
		}
		sub, err := v.Open(e.Name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = g.walk(ctx, sub, path)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// try picks a path, with all below, if it matches.
func (g *glob) try(path string) bool {
	ok, _ := doublestar.Match(g.pattern, path) // the pattern is valid
	if ok {
		g.root.add(path).all = true
		g.found = true
	}
	return ok
}

// descend opens a directory below a view.
func descend(v *layer.View, path string) (*layer.View, error) {
	dir, err := v.Open(".")
	if err != nil || path == "." {
		return dir, err
	}
	for name := range strings.SplitSeq(path, "/") {
		next, err := dir.Open(name)
		if errdefs.IsNotFound(err) {
			if e, lookup := dir.Lookup(name); lookup == nil && e.IsLink() {
				err = fmt.Errorf("%s is a symbolic link, which is not followed: %w", name, errdefs.ErrFailedPrecondition)
			}
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// exists tells whether there is anything at a path.
func exists(v *layer.View, path string) (bool, error) {
	dir, err := descend(v, filepath.Dir(path))
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	_, err = dir.Lookup(filepath.Base(path))
	if errdefs.IsNotFound(err) {
		return path == ".", nil
	}
	return err == nil, err
}
