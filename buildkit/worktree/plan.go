package worktree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Stack is the layers of a project directory as one of its caches sees them, each list from the uppermost down.
type Stack struct {
	Upper string   // what the job wrote
	Above []string // of caches that lie above this one
	Base  []string // of the generation that this cache began with; none if it was empty
	Below []string // of caches that lie below this one, and of the workspace
}

func (s Stack) all() []string { return slices.Concat([]string{s.Upper}, s.Above, s.Base, s.Below) }

// Verdict says how to publish a cache.
type Verdict string

// The verdicts.
const (
	Empty     Verdict = "empty"     // nothing is selected: gitlab-runner leaves what was cached before
	Unchanged Verdict = "unchanged" // the base is what is selected
	UponBase  Verdict = "upon base" // publish a layer upon the base
	Fresh     Verdict = "fresh"     // publish a layer upon nothing
)

// Plan is what a cache is to publish. A layer upon nothing holds all that is selected, and no whiteouts or opaque
// directories. One upon the base has such for what is hidden of the base; see Overlaps.
type Plan struct {
	Verdict  Verdict
	Files    int   // that go into the new layer, but for directories
	Bytes    int64 // of them
	Warnings []string

	stack Stack
	quick []step          // the paths, if each goes as a whole
	picks *picked         // otherwise
	links map[inode]names // of files that the job wrote
	apart bool            // the base is no more needed below
}

type inode struct{ dev, ino uint64 }

// names counts those of a file: that can be moved as they are selected, and all.
type names struct{ seen, all uint64 }

// MakePlan finds what a cache is to publish of a project directory, and changes nothing. As long as nothing else is
// to happen than Copy, the directory may be mounted and in use.
//
// If each selected path is a plain one that lies in this cache's layers alone, this takes as long as the job's changes
// are many; otherwise as all that is selected, or is searched for a pattern.
func MakePlan(ctx context.Context, stack Stack, selection Selection) (*Plan, error) {
	p := &Plan{stack: stack, links: map[inode]names{}}
	err := errSlow
	if paths, ok := selection.plain(); ok {
		err = p.byPath(ctx, paths, selection)
	}
	if errors.Is(err, errSlow) {
		*p = Plan{stack: stack, links: map[inode]names{}}
		err = p.byFile(ctx, selection)
	}
	if err != nil {
		return nil, fmt.Errorf("find what to cache: %w", err)
	}
	return p, nil
}

// errSlow says that a selection cannot be taken by whole paths.
var errSlow = errors.New("paths are not this cache's alone")

// Lower is the layers to mount below the upper directory after Take, instead of those of the stack: the directory
// looks as before then. dst is the new layer.
func (p *Plan) Lower(dst string) []string {
	base := p.stack.Base
	if p.apart {
		base = nil
	}
	return slices.Concat([]string{dst}, p.stack.Above, base, p.stack.Below)
}

// Take makes the layer of a plan in dst, the upper directory of an empty clone of the base or of nothing, as the
// verdict says. The project directory must be unmounted since before MakePlan. What the job wrote is moved out of its
// upper directory, so that nobody can write to it any more. Lower tells what to mount after.
//
// After an error nothing was moved; dst must be dropped.
func (p *Plan) Take(ctx context.Context, dst string) error { return p.fill(ctx, dst, false) }

// Copy makes the layer of a plan as Take does, but leaves the upper directory alone, and copies what the job wrote:
// for a project directory that is in use, and so stays mounted as it is.
func (p *Plan) Copy(ctx context.Context, dst string) error { return p.fill(ctx, dst, true) }

func (p *Plan) fill(ctx context.Context, dst string, byCopy bool) (err error) {
	if p.Verdict != UponBase && p.Verdict != Fresh {
		return fmt.Errorf("make layer of cache: it is %s: %w", p.Verdict, errdefs.ErrInvalidArgument)
	}
	f, err := newFilling(p, dst, byCopy)
	if err != nil {
		return fmt.Errorf("make layer of cache: %w", err)
	}
	defer f.close()
	if p.picks != nil {
		err = f.byFile(ctx)
	} else {
		err = f.byPath(ctx)
	}
	if err == nil {
		err = f.finish()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make layer of cache: %w", err), f.undo())
	}
	return nil
}

// Overlaps tells whether layers have anything at or below the plain paths. Before a cache's layers are mounted above
// those of a workspace that does, they are to be flattened by layer.Flatten, if there are several: the whiteouts of
// the upper ones are meant for the lower, and would hide the workspace's files.
func Overlaps(layers []string, selection Selection) (bool, error) {
	if len(layers) == 0 {
		return false, nil
	}
	paths, ok := selection.plain()
	if !ok {
		return true, nil
	}
	v, err := layer.OpenView(layers)
	if err != nil {
		return false, fmt.Errorf("look for cached paths in the workspace: %w", err)
	}
	defer v.Close()
	for _, path := range paths {
		found, err := exists(v, path)
		if errdefs.IsFailedPrecondition(err) {
			found, err = true, nil
		}
		if err != nil || found {
			return found, err
		}
	}
	return false, nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Apart tells whether the layers of the base are needed below no more.
func (p *Plan) Apart() bool { return p.apart }
