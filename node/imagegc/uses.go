package imagegc

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"

	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
)

// uses is what the jobs on the node have used of images, by names and digests.
// What a job's lease or container holds need not be here; but docker pulls
// before it runs, and a build reads long after it has resolved.
type uses map[string]map[string]bool

func (u uses) note(job string, keys ...string) {
	if u[job] == nil {
		u[job] = map[string]bool{}
	}
	for _, key := range keys {
		u[job][key] = true
	}
}

// of lists the jobs that have used an image.
func (u uses) of(name string, target digest.Digest) (jobs []string) {
	for job, keys := range u {
		if keys[name] || keys[target.String()] {
			jobs = append(jobs, job)
		}
	}
	slices.Sort(jobs)
	return jobs
}

// Use notes that a job uses an image: it stays until the job ends. The error is
// one of not found if it has been removed meanwhile.
func (k *Keeper) Use(ctx context.Context, job string, i images.Image) error {
	k.mu.Lock()
	k.uses.note(job, i.Name, i.Target.Digest.String())
	k.mu.Unlock()
	return lastuse.Touch(ctx, k.client.ImageService(), i)
}

// Expect notes that a job is about to make an image of that name, or one that
// is known by its digest alone.
func (k *Keeper) Expect(job, nameOrDigest string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uses.note(job, nameOrDigest)
}

// living gives the jobs on the node that berthd has found there when it
// started, with their begin, and forgets what jobs have used that have ended.
func (k *Keeper) living() map[string]time.Time {
	k.mu.Lock()
	// Before the jobs are listed: who is admitted then stays.
	before := slices.Collect(maps.Keys(k.uses))
	k.mu.Unlock()
	found, all := map[string]time.Time{}, map[string]bool{}
	for _, j := range k.jobs() {
		all[j.Key] = true
		if j.Since.Before(k.opened) {
			found[j.Key] = j.Since
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, job := range before {
		if !all[job] {
			delete(k.uses, job)
		}
	}
	return found
}

// addUsers adds the jobs that have used an image to what holds it. What jobs
// did before berthd was started again is not known: all that was used since
// they began may be theirs.
func (k *Keeper) addUsers(list []Image) {
	found := k.living()
	k.mu.Lock()
	defer k.mu.Unlock()
	for at := range list {
		i := &list[at]
		for _, job := range k.uses.of(i.Name, i.Target) {
			i.Users = add(i.Users, job)
		}
		for job, since := range found {
			if i.Used.After(since.Add(-lastuse.Interval)) {
				i.Users = add(i.Users, job)
			}
		}
	}
}
