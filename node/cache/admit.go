package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/buildkit/worktree"
	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Admit gives a job its caches, but for those that only its checkout can tell. It waits for what others have, and says
// so. After an error Release gives back what the job has got so far.
func (s *Service) Admit(ctx context.Context, start Start, say func(string)) (api.Caches, error) {
	r := Record{
		Identity: start.Request.Job, Policy: start.Policy, Sources: start.Request.Sources,
		Publish: start.Request.Variables[executor.CachePublishVariable],
	}
	j := s.newJob(start.Key, start.Dir, start.Builds, r, start.Save)
	j.mu.Lock()
	defer j.mu.Unlock()
	s.add(j)
	var err error
	if j.record.Mounts, err = parseMounts(start.Request, start.Policy); err != nil {
		return api.Caches{}, err
	}
	if err := j.enter(start.Request); err != nil {
		return api.Caches{}, err
	}
	for i := range j.record.Mounts {
		m := &j.record.Mounts[i]
		switch {
		case !m.late():
			err = j.acquire(ctx, m, m.Spec.ID, say)
		case m.Inside == "":
			m.Stub, err = j.stub(i)
		}
		if err != nil {
			return api.Caches{}, err
		}
	}
	if err := j.open(); err != nil {
		return api.Caches{}, err
	}
	return api.Caches{
		Serves: j.serves(), Mounts: j.mounts(), Env: j.env(), Content: j.content(),
		Untracked: j.untracked(), Finish: j.finishes(),
	}, j.write()
}

// open has the job's containers see what is mounted in its builds directory while they run.
func (j *Job) open() error {
	if !j.serves() {
		return nil
	}
	if err := worktree.Share(j.builds); err != nil {
		return err
	}
	if !j.native() || j.keeps() {
		return nil
	}
	return j.below(func(r *worktree.Root) error { return r.Guard(j.record.Sources.Dir, 0, 0) })
}

// finishes tells whether something is published after the job's last script.
func (j *Job) finishes() bool {
	return slices.ContainsFunc(j.record.Mounts, func(m Mount) bool { return m.Spec.Sharing == spec.Snapshot && !m.Spec.ReadOnly })
}

// enter takes in the job's `cache:`, if it can be served here.
func (j *Job) enter(r executor.Request) error {
	r0 := &j.record
	for _, c := range r.Caches {
		r0.Entries = append(r0.Entries, Entry{Cache: c})
		if c.Script != "" {
			r0.Script = c.Script
		}
	}
	switch native := r.Variables[executor.CacheNativeVariable]; {
	case len(r.Caches) == 0:
	case r0.Sources.Dir == "":
		r0.Script = "the project's directory is not below " + executor.BuildsDir
	case !r0.Policy.Native:
		r0.Script = "the profile says so"
	case native == "false":
		r0.Script = executor.CacheNativeVariable + " is false"
	case native != "" && native != "true":
		return executor.Failf("%s: expected true or false, got %q", executor.CacheNativeVariable, native)
	}
	switch r0.Publish {
	case "", "true", "false":
		return nil
	}
	return executor.Failf("%s: expected true or false, got %q", executor.CachePublishVariable, r0.Publish)
}

// native tells whether `cache:` is served here.
func (j *Job) native() bool { return len(j.record.Entries) > 0 && j.record.Script == "" }

// keeps tells whether the job works in the tree that an earlier one left.
func (j *Job) keeps() bool { return j.record.Policy.Workspace && j.record.Sources.Keeps() }

// serves tells whether the job's stages have to do with caches.
func (j *Job) serves() bool {
	return j.keeps() || j.native() || len(j.record.Mounts) > 0
}

// content lists what the keys name of the commit.
func (j *Job) content() []string {
	var names []string
	add := func(key string) {
		for _, ref := range contentKey.FindAllStringSubmatch(key, -1) {
			if name := ref[1] + ":" + ref[2]; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, m := range j.record.Mounts {
		add(m.Spec.ID)
	}
	if j.native() {
		for _, e := range j.record.Entries {
			add(e.Cache.Key)
			for _, key := range e.Cache.FallbackKeys {
				add(key)
			}
		}
	}
	return names
}

func (j *Job) untracked() bool {
	return j.native() && slices.ContainsFunc(j.record.Entries, func(e Entry) bool { return e.Cache.Untracked })
}

// env tells the job's scripts what they got.
func (j *Job) env() map[string]string {
	env := map[string]string{}
	for _, m := range j.record.Mounts {
		if m.Hit != "" {
			env[hitVariable(m.Spec.ID)] = m.Hit
		}
	}
	for _, e := range j.record.Entries {
		if e.Hit != "" {
			env[hitVariable(e.Cache.Key)] = e.Hit
		}
	}
	return env
}

// write puts the record into the job's journal.
func (j *Job) write() error {
	r := j.record
	r.Mounts, r.Entries, r.Parts, r.Saving = slices.Clone(r.Mounts), slices.Clone(r.Entries), slices.Clone(r.Parts), slices.Clone(r.Saving)
	if r.Tree != nil {
		tree := *r.Tree
		r.Tree = &tree
	}
	return j.save(r)
}

// Record is what the journal keeps.
func (j *Job) Record() Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.record
}

// resolve replaces what a key names of the commit by its hash.
func resolve(key string, content map[string]string) (string, error) {
	var missing []string
	key = contentKey.ReplaceAllStringFunc(key, func(ref string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(ref, "${"), "}")
		hash := content[name]
		if !hashText.MatchString(hash) {
			missing = append(missing, name)
		}
		return hash
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("its key names what the commit does not have: %s", strings.Join(missing, ", "))
	}
	return key, nil
}

// Release gives back all that the job has, and publishes nothing. Nothing of the job may live any more. It can be
// done again after a failure.
func (j *Job) Release(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.endFetch()
	if j.ended {
		return nil
	}
	err := worktree.Detach(j.dir)
	for id, c := range j.clones {
		if discardErr := c.Discard(ctx); discardErr != nil {
			err = errors.Join(err, discardErr)
			continue
		}
		delete(j.clones, id)
	}
	for id, m := range j.lent {
		if releaseErr := m.Release(ctx); releaseErr != nil {
			err = errors.Join(err, releaseErr)
			continue
		}
		delete(j.lent, id)
	}
	if err != nil {
		return fmt.Errorf("release the caches of job %s: %w", j.key, err)
	}
	j.ended = true
	j.service.mu.Lock()
	defer j.service.mu.Unlock()
	if j.service.jobs[j.key] == j {
		delete(j.service.jobs, j.key)
	}
	return nil
}
