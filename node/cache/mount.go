package cache

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/buildkit/worktree"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Mount is a cache that is mounted at a place of its own.
type Mount struct {
	Name     string     `json:"name"` // where it was asked for
	Spec     spec.Cache `json:"spec"`
	Operator bool       `json:"operator,omitempty"` // by whom
	// Target is absolute; Inside is it below the project's directory, if it is there.
	Target string `json:"target"`
	Inside string `json:"inside,omitempty"`
	// Stub is a directory on the node on which it is mounted while the containers run.
	Stub string `json:"stub,omitempty"`
	// Source is the directory on the node, once the job has it.
	Source string `json:"source,omitempty"`
	Bound  bool   `json:"bound,omitempty"`
	Fresh  bool   `json:"fresh,omitempty"`
	Hit    string `json:"hit,omitempty"`
	// Lent is a shared directory, Clone a copy; neither is an empty directory in their place.
	Lent  *cachemount.Record `json:"lent,omitempty"`
	Clone *generation.Record `json:"clone,omitempty"`
	// Outcome is what the job is told of the copy's having been published; empty if it was not.
	Outcome string `json:"outcome,omitempty"`
}

// What BERTH_CACHE_HIT_… may say.
const (
	hit      = "hit"
	fallback = "fallback"
	miss     = "miss"
)

// maxMounts bounds what one job may ask for.
const maxMounts = 32

// reserved are directories that a cache may neither take the place of nor lie in.
var reserved = []string{"/proc", "/sys", "/dev", "/.berth", "/cache"}

// parseMounts reads the profile's caches and the job's. Faults of a job's are its own.
func parseMounts(r executor.Request, policy executor.CachePolicy) ([]Mount, error) {
	var mounts []Mount
	for i, text := range policy.Mounts {
		c, err := spec.Parse(text)
		if err != nil { // refused when the profile was read
			return nil, fmt.Errorf("cache.mounts[%d] of the profile: %w", i, err)
		}
		mounts = append(mounts, Mount{Name: fmt.Sprintf("cache.mounts[%d] of the profile", i), Spec: c, Operator: true})
	}
	for _, asked := range r.Mounts {
		c, err := spec.Parse(asked.Spec)
		if err != nil {
			return nil, executor.Failf("%s: %w", asked.Variable, err)
		}
		if c.Scope != "" {
			return nil, executor.Failf("%s: a scope is the operator's to give: leave it out, or ask for the cache to be added to the profile's cache.mounts", asked.Variable)
		}
		mounts = append(mounts, Mount{Name: asked.Variable, Spec: c})
	}
	if len(mounts) > maxMounts {
		return nil, executor.Failf("the job has %d cache mounts, its profile's included; expected at most %d", len(mounts), maxMounts)
	}
	if err := placeMounts(mounts, r.Sources.Dir); err != nil {
		return nil, err
	}
	// Those that lie in others come after them.
	slices.SortStableFunc(mounts, func(a, b Mount) int { return strings.Compare(a.Target, b.Target) })
	return mounts, nil
}

// placeMounts finds out where in the containers they go, and that no two are in each other's way.
func placeMounts(mounts []Mount, project string) error {
	var root string
	if project != "" {
		root = path.Join(executor.BuildsDir, project)
	}
	for i := range mounts {
		m := &mounts[i]
		m.Target = path.Clean(m.Spec.Target)
		if !path.IsAbs(m.Target) {
			if root == "" {
				return executor.Failf("%s: target %q is relative, and the project's directory is not known: give it as an absolute path", m.Name, m.Target)
			}
			m.Target = path.Join(root, m.Target)
		}
		if inside, ok := strings.CutPrefix(m.Target, root+"/"); ok && root != "" {
			m.Inside = inside
			if first, _, _ := strings.Cut(inside, "/"); first == ".git" {
				return executor.Failf("%s: target %q lies in the project's repository, which git has to find as it was: choose another directory", m.Name, m.Target)
			}
		} else if m.Target == root || within(root, m.Target) || within(executor.BuildsDir, m.Target) {
			return executor.Failf("%s: target %q would take the place of the project's directory: choose one inside of it", m.Name, m.Target)
		}
		for _, dir := range reserved {
			if m.Target == dir || within(m.Target, dir) || within(dir, m.Target) {
				return executor.Failf("%s: target %q is, or lies in, a directory that the container needs as it is (%s): choose another", m.Name, m.Target, dir)
			}
		}
		for _, other := range mounts[:i] {
			switch {
			case m.Target == other.Target:
				return executor.Failf("%s and %s have the same target %q: give each one of its own", other.Name, m.Name, m.Target)
			case m.Spec.ID == other.Spec.ID && m.Spec.Scope == other.Spec.Scope:
				return executor.Failf("%s and %s name the same cache %q: one target is enough, others can be links to it", other.Name, m.Name, m.Spec.ID)
			}
		}
	}
	return nil
}

// within tells whether a path lies below a directory.
func within(name, dir string) bool { return strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/") }

// late tells whether a mount can only be made after checkout.
func (m *Mount) late() bool { return m.Inside != "" || m.Spec.HasContentKey() }

// acquire gets the job a cache mount. A cache that cannot be had is an empty directory; only what is asked for
// wrongly is an error.
func (j *Job) acquire(ctx context.Context, m *Mount, id string, say func(string)) error {
	began := time.Now()
	text, err := j.tryAcquire(ctx, m, id, say)
	switch {
	case err == nil:
		say(fmt.Sprintf("Cache %s: %s (%s)", id, text, took(began)))
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errdefs.IsConflict(err):
		return executor.Failf("%s: %w", m.Name, err)
	}
	j.log.WithError(err).WithField("cache", id).Warn("a job goes on without a cache")
	say(fmt.Sprintf("WARNING: cache %s: %s; the job goes on with an empty one", id, explain(err)))
	j.substitute(m)
	return nil
}

// substitute gives the job an empty directory of its own; where even that cannot be had, none.
func (j *Job) substitute(m *Mount) {
	m.Source, m.Fresh, m.Hit, m.Lent, m.Clone = filepath.Join(j.dir, "caches", "empty-"+digest(m.Target)), true, miss, nil, nil
	if err := os.MkdirAll(m.Source, 0o755); err != nil {
		j.log.WithError(err).Warn("a job goes on without a directory for a cache")
		m.Source = ""
	}
}

func (j *Job) tryAcquire(ctx context.Context, m *Mount, id string, say func(string)) (string, error) {
	if err := spec.ValidateID(id); err != nil {
		return "", err
	}
	if err := j.oneMode(ctx, m, id); err != nil {
		return "", err
	}
	if m.Spec.Sharing == spec.Snapshot {
		return j.acquireClone(ctx, m, id)
	}
	return j.acquireShared(ctx, m, id, say)
}

// oneMode refuses a cache as something else than it is. Copies and directories of one id would not see each other.
func (j *Job) oneMode(ctx context.Context, m *Mount, id string) error {
	ns := namespace(j.record.Identity, m.Spec.Scope, tierOf(j.record.Identity))
	if m.Spec.Sharing == spec.Snapshot {
		there, err := j.service.engine.Mounts().Exists(ctx, cachemount.Key(ns, id))
		if err != nil || !there {
			return err
		}
		return fmt.Errorf("cache %q is a directory that jobs and builds share, and not one of which each job gets a copy: ask for it with sharing=shared, locked or private, or give this one another id: %w",
			id, errdefs.ErrConflict)
	}
	if _, ok := j.service.engine.Generations().Newest(generationKey(ns, kindSnapshot, id)); ok {
		return fmt.Errorf("cache %q is one of which each job gets a copy (sharing=snapshot), and no directory that is %s: ask for it without sharing, or give this one another id: %w",
			id, m.Spec.Sharing, errdefs.ErrConflict)
	}
	return nil
}

func (j *Job) acquireClone(ctx context.Context, m *Mount, id string) (string, error) {
	lines := readable(j.record.Identity, m.Spec.Scope, id)
	base, ok := j.service.newest(kindSnapshot, lines)
	c, err := j.clone(ctx, base, ok, lines[0].key(kindSnapshot))
	if err != nil {
		return "", err
	}
	r := c.Record()
	m.Clone, m.Source, m.Fresh, m.Hit = &r, c.Path(), !ok, miss
	if err := j.write(); err != nil {
		return "", err
	}
	if err := c.Mount(); err != nil {
		return "", err
	}
	if !ok {
		return "empty, since nothing was published of it yet", nil
	}
	m.Hit = hit
	return describe(base), nil
}

func (j *Job) acquireShared(ctx context.Context, m *Mount, id string, say func(string)) (string, error) {
	key := cachemount.Key(namespace(j.record.Identity, m.Spec.Scope, tierOf(j.record.Identity)), id)
	others := j.service.engine.Mounts().Holders(key)
	lent, err := j.service.engine.Mounts().Acquire(ctx, cachemount.Request{
		Key: key, Job: j.key, Sharing: m.Spec.Sharing, Pool: m.Spec.Pool,
		Limit: time.Duration(j.record.Policy.Wait),
		Progress: func(w cachemount.Wait) {
			say(fmt.Sprintf("Waiting for cache %s: %s is in use by %s, %s so far, %v at most", id, m.Spec.Sharing,
				holders(w.Holders), w.For.Round(time.Second), j.record.Policy.Wait))
		},
	})
	if err != nil {
		return "", err
	}
	r := lent.Record()
	j.lent[r.ID] = lent
	m.Lent, m.Source, m.Hit = &r, lent.Path(), hit
	if err := j.write(); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(m.Source)
	if err != nil {
		return "", fmt.Errorf("read cache: %w", err)
	}
	if m.Fresh = len(entries) == 0; m.Fresh {
		m.Hit = miss
	}
	text := fmt.Sprintf("%s directory", m.Spec.Sharing)
	if m.Fresh {
		text += ", empty"
	}
	if m.Spec.Sharing == spec.Shared && len(others) > 0 {
		text += ", also in use by " + holders(others)
	}
	return text, nil
}

// clone makes a clone and remembers it; the caller writes it to the journal before it is used.
func (j *Job) clone(ctx context.Context, base generation.Info, of bool, key string) (*generation.Clone, error) {
	store := j.service.engine.Generations()
	var (
		c   *generation.Clone
		err error
	)
	if of {
		c, err = store.CloneOf(ctx, base, key, j.key)
	} else {
		c, err = store.Empty(ctx, key, j.key)
	}
	if err != nil {
		return nil, err
	}
	j.clones[c.Record().ID] = c
	return c, nil
}

// newest is the newest of what lines hold.
func (s *Service) newest(kind string, lines []line) (best generation.Info, ok bool) {
	for _, l := range lines {
		info, there := s.engine.Generations().Newest(l.key(kind))
		if there && (!ok || info.Created.After(best.Created)) {
			best, ok = info, true
		}
	}
	return best, ok
}

// newestOwned is the newest of what lines hold, whoever wrote it, and who did; what the user wrote if it is as new.
func (s *Service) newestOwned(kind string, lines []line, user User) (best generation.Info, owner User, ok bool) {
	if best, ok = s.newest(kind, ownedLines(lines, user)); ok {
		owner = user
	}
	for _, key := range s.engine.Generations().Keys() {
		for _, l := range lines {
			name, of := strings.CutPrefix(key, generationKey(l.namespace, kind, ""))
			if !of {
				continue
			}
			by, name := ownerOf(name)
			if name != l.name || by == user {
				continue
			}
			info, there := s.engine.Generations().Newest(key)
			if there && (!ok || info.Created.After(best.Created)) {
				best, owner, ok = info, by, true
			}
		}
	}
	return best, owner, ok
}

// ownedLines are the lines of a user.
func ownedLines(lines []line, user User) []line {
	list := make([]line, len(lines))
	for i, l := range lines {
		list[i] = line{l.namespace, owned(user, l.name)}
	}
	return list
}

// mounts is what the build container gets when it starts.
func (j *Job) mounts() []api.CacheMount {
	var list []api.CacheMount
	for _, m := range j.record.Mounts {
		switch {
		case m.Inside != "", m.Stub == "" && m.Source == "":
		case m.Stub != "":
			list = append(list, api.CacheMount{Source: m.Stub, Target: m.Target, Late: true, Fresh: true})
		default:
			list = append(list, api.CacheMount{Source: m.Source, Target: m.Target, ReadOnly: m.Spec.ReadOnly, Fresh: m.Fresh})
		}
	}
	return list
}

// stub makes the directory on which a cache will be mounted.
func (j *Job) stub(n int) (string, error) {
	dir := filepath.Join(j.dir, "caches", strconv.Itoa(n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make mount point of a cache: %w", err)
	}
	return dir, worktree.Share(dir)
}

// own gives the directory of a cache that nobody has written to the job's user.
func (j *Job) own(m *Mount) error {
	if !m.Fresh || m.Source == "" {
		return nil
	}
	if err := os.Lchown(m.Source, j.record.User.UID, j.record.User.GID); err != nil {
		return fmt.Errorf("give a cache to the job's user: %w", err)
	}
	return nil
}
