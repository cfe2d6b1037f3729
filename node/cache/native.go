package cache

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/layer"
	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/buildkit/worktree"
	"gitlab.com/berth-ci/berth/executor"
)

// Entry is one of the job's `cache:`.
type Entry struct {
	Cache executor.Cache `json:"cache"`
	// Key is that of the generations that the job would publish, once it is known.
	Key string `json:"key,omitempty"`
	Hit string `json:"hit,omitempty"`
	// Base is a clone of the generation that the job got, into which the next may be written; nil if it got none.
	Base *generation.Record `json:"base,omitempty"`
	// Part is the clone whose layers are in the tree for it.
	Part string `json:"part,omitempty"`
	// Outcome is what the job is told of its having been saved; empty if it was not.
	Outcome string `json:"outcome,omitempty"`
}

func (j *Job) selection(e *Entry, untracked []byte) worktree.Selection {
	s := worktree.Selection{Dir: path.Join(executor.BuildsDir, j.record.Sources.Dir), Paths: e.Cache.Paths}
	if e.Cache.Untracked {
		s.Untracked = untracked
	}
	return s
}

// selects says what the cache holds, for the jobs that come and for operators.
func (e *Entry) selects() string {
	paths := slices.Sorted(slices.Values(e.Cache.Paths))
	if e.Cache.Untracked {
		paths = append(paths, "(untracked)")
	}
	return strings.Join(paths, " ")
}

// restore finds what the job gets of its `cache:`. The layers are in the tree when that is mounted next: of two caches
// with the same file the later one is seen, as when archives are unpacked one after another.
func (j *Job) restore(ctx context.Context, content map[string]string, note func(string)) {
	for i := range j.record.Entries {
		e := &j.record.Entries[i]
		if e.Hit != "" || e.Key != "" {
			continue // done before a restart
		}
		began := time.Now()
		text, err := j.restoreOne(ctx, e, content)
		if err != nil {
			e.Hit = miss
			j.log.WithError(err).WithField("cache", e.Cache.Key).Warn("a job goes on without a cache")
			note(fmt.Sprintf("WARNING: cache %s: %s; the job goes on with an empty one", e.Cache.Key, explain(err)))
			continue
		}
		note(fmt.Sprintf("Cache %s: %s (%s)", e.Cache.Key, text, took(began)))
	}
}

func (j *Job) restoreOne(ctx context.Context, e *Entry, content map[string]string) (string, error) {
	key, err := resolve(e.Cache.Key, content)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	user, lines := j.record.User, readable(j.record.Identity, spec.Project, key)
	e.Key, e.Hit = ownedLines(lines, user)[0].key(kindCache), miss
	if !e.Cache.Pulls() {
		return "not asked for, by its policy", nil
	}
	base, owner, ok := j.service.newestOwned(kindCache, lines, user)
	from, name := hit, ""
	for _, other := range e.Cache.FallbackKeys {
		if ok {
			break
		}
		if other, err = resolve(other, content); err != nil {
			continue
		}
		base, owner, ok = j.service.newestOwned(kindCache, readable(j.record.Identity, spec.Project, other), user)
		from, name = fallback, "fallback "+other+", "
	}
	if !ok {
		return "empty, since nothing was saved of it yet", nil
	}
	e.Hit = from
	text := name + describe(base)
	if owner == user {
		return text, j.lay(ctx, e, base)
	}
	return fmt.Sprintf("%s, copied from user %d's", text, owner.UID), j.layCopy(ctx, e, base, owner)
}

// lay puts a generation into the tree.
func (j *Job) lay(ctx context.Context, e *Entry, base generation.Info) error {
	c, err := j.clone(ctx, base, true, e.Key)
	if err != nil {
		return err
	}
	r := c.Record()
	e.Base, e.Part = &r, r.ID
	j.record.Parts = append([]Part{{Clone: r}}, j.record.Parts...) // written when it is mounted
	return nil
}

// layCopy puts a generation of another user's into the tree, in which all belongs to the job's user. If the job may
// publish it becomes a generation itself, which the next job of the user finds.
func (j *Job) layCopy(ctx context.Context, e *Entry, base generation.Info, owner User) error {
	source, err := j.clone(ctx, base, true, e.Key)
	if err != nil {
		return err
	}
	defer func() { _ = j.discard(context.WithoutCancel(ctx), source.Record().ID) }()
	c, err := j.clone(ctx, generation.Info{}, false, e.Key)
	if err != nil {
		return err
	}
	r := c.Record()
	c.Note(base.Note)
	err = worktree.Chown(ctx, c.Overlay().Upper, source.Overlay().Lower, worktree.Owner(owner), worktree.Owner(j.record.User))
	if err != nil {
		return errors.Join(err, j.discard(context.WithoutCancel(ctx), r.ID))
	}
	if refusal(j.record.Identity, j.record.Policy.Publish, j.record.Publish) == "" {
		info, _, err := c.Publish(ctx)
		if err != nil {
			return errors.Join(err, j.discard(context.WithoutCancel(ctx), r.ID))
		}
		delete(j.clones, r.ID)
		return j.lay(ctx, e, info)
	}
	e.Part = r.ID
	j.record.Parts = append([]Part{{Clone: r, Written: true}}, j.record.Parts...)
	return j.write()
}

// flattenParts makes one layer of the caches whose paths the commit has something in, too: whiteouts between their
// layers would hide it.
func (j *Job) flattenParts(ctx context.Context) error {
	workspace, err := j.workspace()
	if err != nil {
		return err
	}
	below := append([]string{workspace.Upper}, workspace.Lower...)
	for i := range j.record.Entries {
		e := &j.record.Entries[i]
		at := j.partOf(e)
		if at < 0 || j.record.Parts[at].Written {
			continue
		}
		layers, err := j.layers(j.record.Parts[at])
		if err != nil {
			return err
		}
		if len(layers) < 2 {
			continue
		}
		overlaps, err := worktree.Overlaps(below, j.selection(e, nil))
		if err != nil {
			return err
		}
		// What was selected before may overlap where this does not.
		if base := e.Base; !overlaps && base != nil && base.Base != nil && base.Base.Note == e.selects() {
			continue
		}
		flat, err := j.clone(ctx, generation.Info{}, false, e.Key)
		if err != nil {
			return err
		}
		e.Part = flat.Record().ID
		j.record.Parts[at] = Part{Clone: flat.Record(), Written: true}
		if err := j.write(); err != nil {
			return err
		}
		if err := layer.Flatten(ctx, flat.Overlay().Upper, layers); err != nil {
			return err
		}
	}
	return nil
}

// saveEntries publishes the job's `cache:`.
func (j *Job) saveEntries(ctx context.Context, untracked []byte, success bool, note func(string)) error {
	if !j.native() {
		return fmt.Errorf("the caches of job %s are not served here: %w", j.key, errdefs.ErrFailedPrecondition)
	}
	if j.record.Tree == nil {
		return fmt.Errorf("the working tree of job %s is lost: %w", j.key, errdefs.ErrDataLoss)
	}
	due := j.due(success, note)
	if len(due) == 0 {
		return nil
	}
	err := j.unmountTree(ctx)
	inUse := errdefs.IsFailedPrecondition(err)
	if err != nil && !inUse {
		return err
	}
	for _, e := range due {
		began := time.Now()
		text, err := j.saveOne(ctx, e, untracked, inUse, note)
		if err != nil {
			j.log.WithError(err).WithField("cache", e.Cache.Key).Warn("cannot save a cache")
			note(fmt.Sprintf("WARNING: cache %s: not saved: %s", e.Cache.Key, explain(err)))
			continue
		}
		note(fmt.Sprintf("Cache %s: %s (%s)", e.Cache.Key, text, took(began)))
	}
	if err := j.ensureTree(); err != nil {
		return fmt.Errorf("give the job its working tree back: %w", err)
	}
	return j.write()
}

// due lists what is to be saved, and says why the rest is not.
func (j *Job) due(success bool, note func(string)) (due []*Entry) {
	for i := range j.record.Entries {
		e := &j.record.Entries[i]
		if !e.Cache.Pushes(success) {
			continue
		}
		switch why := refusal(j.record.Identity, j.record.Policy.Publish, j.record.Publish); {
		case e.Outcome != "": // before a restart
			note(fmt.Sprintf("Cache %s: %s", e.Cache.Key, e.Outcome))
		case e.Key == "":
			note(fmt.Sprintf("WARNING: cache %s: not saved, since its key is not known", e.Cache.Key))
		case why != "":
			note(fmt.Sprintf("Cache %s: not saved: %s", e.Cache.Key, why))
		default:
			due = append(due, e)
		}
	}
	return due
}

// saveOne publishes a cache, and has the tree show what was published where the job's own writes were.
func (j *Job) saveOne(ctx context.Context, e *Entry, untracked []byte, inUse bool, note func(string)) (string, error) {
	stack, err := j.stackOf(e)
	if err != nil {
		return "", err
	}
	plan, err := worktree.MakePlan(ctx, stack, j.selection(e, untracked))
	if err != nil {
		return "", err
	}
	for _, warning := range plan.Warnings {
		note("WARNING: cache " + e.Cache.Key + ": " + warning)
	}
	switch plan.Verdict {
	case worktree.Empty:
		return "not saved: there are no such files", nil
	case worktree.Unchanged:
		if base := e.Base.Base; base != nil && base.Key == e.Key {
			return published(*base, false), nil
		}
	}
	c, err := j.next(ctx, e, plan.Verdict)
	if err != nil {
		return "", err
	}
	if err := c.Current(ctx); err != nil {
		return "", errors.Join(err, j.discard(ctx, c.Record().ID))
	}
	if plan.Verdict != worktree.Unchanged {
		if err := j.fill(ctx, e, plan, c, inUse); err != nil {
			return "", errors.Join(err, j.discard(context.WithoutCancel(ctx), c.Record().ID))
		}
	}
	info, changed, err := c.Publish(ctx)
	if errdefs.IsAborted(err) { // the clone stays in the tree
		return "not saved: what the job began with was withdrawn meanwhile", nil
	}
	if err != nil {
		return "", err
	}
	if err := j.follow(ctx, e, c.Record(), info, changed); err != nil {
		// Its layers are still where they were, and the newest are the last that GC takes.
		j.log.WithError(err).Warn("a job keeps the layers of what it has published without holding them")
		return e.Outcome, nil
	}
	if err := j.discard(ctx, c.Record().ID); err != nil {
		j.log.WithError(err).Warn("cannot discard a clone")
	}
	return e.Outcome, nil
}

// stackOf is the tree as one of its caches sees it.
func (j *Job) stackOf(e *Entry) (worktree.Stack, error) {
	workspace, err := j.workspace()
	if err != nil {
		return worktree.Stack{}, err
	}
	s := worktree.Stack{Upper: workspace.Upper}
	var below []Part
	if at := j.partOf(e); at < 0 {
		below = j.record.Parts
	} else {
		below = j.record.Parts[at+1:]
		if s.Above, err = j.stack(j.record.Parts[:at]); err != nil {
			return s, err
		}
		if s.Base, err = j.layers(j.record.Parts[at]); err != nil {
			return s, err
		}
	}
	if s.Below, err = j.stack(below); err != nil {
		return s, err
	}
	s.Below = append(s.Below, workspace.Lower...)
	return s, nil
}

// next is the clone that becomes the next generation: one of the base, or of nothing.
func (j *Job) next(ctx context.Context, e *Entry, v worktree.Verdict) (*generation.Clone, error) {
	var c *generation.Clone
	var err error
	if v == worktree.Fresh {
		c, err = j.clone(ctx, generation.Info{}, false, e.Key)
	} else {
		c, err = j.clone(ctx, *e.Base.Base, true, e.Key)
	}
	if err != nil {
		return nil, err
	}
	c.Note(e.selects())
	// Where a restart finds it; before it is filled it has nothing to show.
	j.record.Saving = append(j.record.Saving, c.Record())
	return c, j.write()
}

// fill puts into a clone what the job wrote. What is moved there is part of the tree from then on.
func (j *Job) fill(ctx context.Context, e *Entry, plan *worktree.Plan, c *generation.Clone, inUse bool) error {
	if inUse {
		return plan.Copy(ctx, c.Overlay().Upper)
	}
	// As the tree is to be mounted from now on, also after a restart amid it.
	before, below := j.record.Parts, j.record.Parts
	if at := j.partOf(e); at >= 0 && plan.Apart() {
		below = slices.Delete(slices.Clone(below), at, at+1)
	}
	j.record.Parts = append([]Part{{Clone: c.Record(), Written: true}}, below...)
	err := j.write()
	if err == nil {
		err = plan.Take(ctx, c.Overlay().Upper)
	}
	if err != nil {
		j.record.Parts = before
		return errors.Join(err, j.write())
	}
	return nil
}

// follow has the tree show the published generation where it shows the clone that became it.
func (j *Job) follow(ctx context.Context, e *Entry, was generation.Record, info generation.Info, changed bool) error {
	e.Outcome = published(info, changed)
	j.record.Saving = slices.DeleteFunc(j.record.Saving, func(r generation.Record) bool { return r.ID == was.ID })
	for i, p := range j.record.Parts {
		if p.Clone.ID != was.ID {
			continue
		}
		c, err := j.clone(ctx, info, true, e.Key)
		if err != nil {
			return err
		}
		j.record.Parts[i] = Part{Clone: c.Record(), Top: true}
	}
	return j.write()
}
