package cache

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/buildkit/worktree"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

var (
	// contentKey is a key's ${tree:PATH} or ${file:PATH}.
	contentKey = regexp.MustCompile(`\$\{(tree|file):([^{}$\x00-\x1f]+)\}`)
	// hashText is what git answers for one: SHA-1 or SHA-256.
	hashText = regexp.MustCompile(`^[0-9a-f]{40}(?:[0-9a-f]{24})?$`)
)

// Fetch gives the job the tree of an earlier one, before get_sources. Where another job fetches the same commit just
// now, it waits for that one's tree, so that the commit is fetched once. Without one the directory is plain and empty.
func (j *Job) Fetch(ctx context.Context, step api.CacheStep, say func(string)) (*api.CacheResult, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.record.User = User{step.UID, step.GID}
	if j.record.Tree != nil || !j.keeps() {
		// Tried again, or a strategy that wants an empty directory, which it makes itself.
		return j.fetched(), j.write()
	}
	lines := j.workspaceLines()
	if err := j.awaitFetch(ctx, commit{lines[0].key(kindWorkspace), j.record.Identity.SHA}, say); err != nil {
		return nil, err
	}
	base, ok := j.service.newest(kindWorkspace, lines)
	err := j.openTree(ctx, base, ok)
	if err == nil {
		return j.fetched(), nil
	}
	j.log.WithError(err).Warn("a job goes on without the working tree of an earlier one")
	say(fmt.Sprintf("WARNING: the working tree of an earlier job cannot be had: %s; everything is fetched", explain(err)))
	return j.fetched(), j.dropTree(ctx)
}

func (j *Job) fetched() *api.CacheResult {
	return &api.CacheResult{Kept: j.record.Tree != nil && j.record.Tree.Kept}
}

// workspaceLines are those of the project and of the place where the job has its tree, which files in it may know.
func (j *Job) workspaceLines() []line {
	return ownedLines(readable(j.record.Identity, spec.Project, digest(j.record.Sources.Dir)), j.record.User)
}

// openTree mounts a clone of a tree, or of nothing.
func (j *Job) openTree(ctx context.Context, base generation.Info, kept bool) error {
	user := j.record.User
	if err := j.below(func(r *worktree.Root) error { return r.Prepare(j.record.Sources.Dir, user.UID, user.GID) }); err != nil {
		return err
	}
	c, err := j.clone(ctx, base, kept, j.workspaceLines()[0].key(kindWorkspace))
	if err != nil {
		return err
	}
	j.record.Tree = &Tree{Clone: c.Record(), Kept: kept}
	if !kept {
		if err := unix.Chown(c.Overlay().Upper, user.UID, user.GID); err != nil {
			return fmt.Errorf("chown working tree: %w", err)
		}
	}
	return j.mountTree()
}

// dropTree gives up the tree; the job has a plain directory then.
func (j *Job) dropTree(ctx context.Context) error {
	t := j.record.Tree
	j.record.Tree = nil
	if t == nil {
		return j.write()
	}
	if t.Mounted {
		if err := j.unmountTree(ctx); err != nil {
			return err
		}
	}
	if err := j.write(); err != nil {
		return err
	}
	return j.discard(ctx, t.Clone.ID)
}

func (j *Job) discard(ctx context.Context, id string) error {
	c := j.clones[id]
	if c == nil {
		return nil
	}
	if err := c.Discard(ctx); err != nil {
		return err
	}
	delete(j.clones, id)
	return nil
}

// Refetch takes a fresh tree after get_sources failed in a kept one.
func (j *Job) Refetch(ctx context.Context) (*api.CacheResult, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.record.Tree == nil || !j.record.Tree.Kept {
		return j.fetched(), nil
	}
	damaged := j.record.Tree.Clone.Base
	if err := j.dropTree(ctx); err != nil {
		return nil, err
	}
	if err := j.openTree(ctx, generation.Info{}, false); err != nil {
		return nil, err
	}
	j.suspect = damaged
	return j.fetched(), nil
}

// Checkout is the step after get_sources: the tree is published for the jobs that come, the caches are put upon it,
// and those mounts are made that only the commit could name.
func (j *Job) Checkout(ctx context.Context, step api.CacheStep, say func(string)) (*api.CacheResult, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.endFetch()
	j.record.User = User{step.UID, step.GID}
	result := &api.CacheResult{}
	note := func(line string) { result.Lines = append(result.Lines, line) }
	if err := j.condemn(ctx); err != nil {
		j.log.WithError(err).Warn("cannot withdraw a damaged working tree")
	}
	for i := range j.record.Mounts {
		if err := j.acquireLate(ctx, &j.record.Mounts[i], step.Content, say); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if j.native() {
		j.restore(ctx, step.Content, func(line string) { result.Restored = append(result.Restored, line) })
	}
	if err := j.layTree(ctx, began, note); err != nil {
		return nil, err
	}
	if err := j.bindInside(); errdefs.IsFailedPrecondition(err) {
		return nil, &executor.BuildFailure{Err: err} // the repository has a link or a file there
	} else if err != nil {
		return nil, err
	}
	if j.record.Script != "" && len(j.record.Entries) > 0 {
		note(fmt.Sprintf("The runner's own script serves cache: %s", j.record.Script))
	}
	result.Native, result.Env = j.native(), j.env()
	return result, j.write()
}

// layTree brings the tree into the state that the job's script finds: published if it has anything new, with the
// caches upon it.
func (j *Job) layTree(ctx context.Context, began time.Time, note func(string)) error {
	withCaches := j.native()
	publish := j.record.Tree != nil && j.keepsTree() &&
		!j.service.has(commit{j.workspaceLines()[0].key(kindWorkspace), j.record.Identity.SHA})
	switch {
	case j.record.Tree == nil && !withCaches:
		return nil
	case j.record.Tree == nil:
		if err := j.adoptTree(ctx); err != nil {
			return j.leaveToScript(ctx, err)
		}
		return nil
	case !publish && len(j.record.Parts) == 0:
		return nil
	}
	if err := j.unmountTree(ctx); err != nil {
		return j.leaveToScript(ctx, err)
	}
	var failure error
	if publish {
		failure = j.publishTree(ctx)
	}
	if failure != nil {
		j.log.WithError(failure).Warn("cannot publish a working tree")
	}
	if err := j.flattenParts(ctx); err != nil {
		j.discardParts(ctx)
		j.log.WithError(err).Warn("a job goes on without its caches")
		note("WARNING: the job goes on without its caches: " + explain(err))
	}
	if err := j.mountTree(); err != nil {
		return fmt.Errorf("give the job its working tree back: %w", err)
	}
	if publish && failure == nil {
		note(fmt.Sprintf("Working tree: kept for the jobs that come, with commit %.8s (%s)", j.record.Identity.SHA, took(began)))
	}
	return nil
}

// keepsTree tells whether the jobs that come find what this one fetches. Each tier has a tree of its own, so that the
// policy of caches, which all read, says no more than whether there is any.
func (j *Job) keepsTree() bool {
	return j.record.Policy.Publish != executor.PublishNever && j.record.Publish != "false" && j.record.Sources.Strategy != "none"
}

// publishTree publishes the unmounted tree, and has the job go on with a clone of it. Credentials of the job's are not
// published.
func (j *Job) publishTree(ctx context.Context) (err error) {
	c := j.clones[j.record.Tree.Clone.ID]
	if c == nil {
		return fmt.Errorf("the working tree's layer is lost: %w", errdefs.ErrNotFound)
	}
	scrubbed, err := worktree.Scrub(c.Overlay().Upper)
	if err != nil {
		return err
	}
	key := c.Record().Key
	c.Note(j.record.Identity.SHA)
	info, _, err := c.Publish(ctx)
	if err != nil && !errdefs.IsAborted(err) {
		return errors.Join(err, scrubbed.Restore(c.Overlay().Upper, c.Overlay().Lower))
	}
	if err != nil {
		return err
	}
	delete(j.clones, c.Record().ID)
	next, err := j.clone(ctx, info, true, key)
	if err != nil {
		return err
	}
	j.record.Tree.Clone = next.Record()
	if err := scrubbed.Restore(next.Overlay().Upper, next.Overlay().Lower); err != nil {
		return err
	}
	return j.write()
}

// adoptTree makes an overlay of the plain directory in which the job has its sources.
func (j *Job) adoptTree(ctx context.Context) error {
	c, err := j.clone(ctx, generation.Info{}, false, generationKey(Namespace(j.record.Identity), kindWorkspace, path.Join("plain", j.key)))
	if err != nil {
		return err
	}
	j.record.Tree = &Tree{Clone: c.Record()}
	if err := j.write(); err != nil {
		return err
	}
	err = j.below(func(r *worktree.Root) error {
		_, err := r.Adopt(ctx, j.record.Sources.Dir, c.Overlay())
		return err
	})
	if err != nil {
		j.record.Tree = nil
		return err
	}
	if err := j.flattenParts(ctx); err != nil {
		j.discardParts(ctx)
		j.log.WithError(err).Warn("a job goes on without its caches")
	}
	return j.mountTree()
}

// leaveToScript has the runner's own script serve `cache:`, since the tree cannot be changed.
func (j *Job) leaveToScript(ctx context.Context, err error) error {
	j.record.Script = "the working tree is in use"
	if !errdefs.IsFailedPrecondition(err) {
		j.record.Script = "a fault on the runner host, whose log says more"
	}
	j.log.WithError(err).Warn("the runner's script serves the caches of a job")
	j.discardParts(ctx)
	for i := range j.record.Entries {
		e := &j.record.Entries[i]
		e.Base, e.Part, e.Hit = nil, "", ""
	}
	return j.write()
}

// condemn withdraws the tree in which get_sources failed, since it did not in a fresh one.
func (j *Job) condemn(ctx context.Context) error {
	damaged := j.suspect
	j.suspect = nil
	if damaged == nil {
		return nil
	}
	j.log.Warnf("generation %d of working tree %q is damaged: it is withdrawn", damaged.Number, damaged.Key)
	return j.service.engine.Generations().Remove(ctx, damaged.Key, true, damaged.Number)
}
