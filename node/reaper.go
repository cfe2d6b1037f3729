package node

import (
	"context"
	"errors"
	"slices"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/network"
)

// survivors tells the jobs of an earlier berthd that still have a runner from
// those that are to be released.
func survivors(records []journal.Record, boot string) (alive, dead []journal.Record) {
	for _, r := range records {
		lives := r.Boot == boot && r.Job.State == api.StateAdmitted && runner{r.Job.Runner, r.TempDir}.ended() == ""
		if lives {
			alive = append(alive, r)
		} else {
			dead = append(dead, r)
		}
	}
	return alive, dead
}

// networksOf lists the networks that jobs have.
func networksOf(records []journal.Record) []network.Network {
	networks := make([]network.Network, len(records))
	for i, r := range records {
		networks[i] = r.Network
	}
	return networks
}

// Replay takes over the jobs of an earlier berthd: those that are alive go
// on, those that are dead are released in the background.
func (j *Jobs) Replay(ctx context.Context, alive, dead []journal.Record) {
	for _, r := range alive {
		e := j.retain(r)
		log := j.log.WithField("job", e.key)
		if err := j.Names.Put(ctx, e.key, zoneOf(r.Admission)); err != nil {
			log.WithError(err).Error("cannot answer names for a job")
		}
		if err := j.Builds.Serve(r); err != nil {
			log.WithError(err).Error("cannot serve builds of a job")
		}
		if err := j.attachDocker(r); err != nil {
			log.WithError(err).Error("cannot give a job its docker again")
		}
		j.attend(e)
		log.Info("kept a job")
	}
	for _, r := range dead {
		j.release(j.retain(r), "it ended while berthd did not run")
	}
}

// retain makes the entry of a job that was admitted by an earlier berthd.
func (j *Jobs) retain(r journal.Record) *job {
	j.mu.Lock()
	defer j.mu.Unlock()
	if q := j.queues[r.Job.Profile]; q != nil {
		q.hold(r.Job)
	}
	return j.settle(r)
}

// Sweep releases again what could not be released, and what has a job's name
// but no job that berthd knows of.
func (j *Jobs) Sweep(ctx context.Context) error {
	// Listed before the jobs are: who is admitted now, is known then.
	labelled, err1 := j.Containers.Jobs(ctx)
	directories, err2 := j.Dirs.jobs()
	groups, err3 := j.Cgroups.Children(j.settings.Cgroup)
	docked, err4 := j.dockerJobs(ctx)
	kept, err5 := j.Sockets.Jobs(ctx)
	for _, key := range slices.Concat(labelled, directories, groups, docked, kept) {
		if !keyPattern.MatchString(key) {
			continue
		}
		if e, unknown := j.find(key); unknown {
			j.release(e, "it was left behind")
		}
	}
	j.mu.Lock()
	var stuck []*job
	for _, e := range j.jobs {
		if e.record.Job.State == api.StateReleasing && e.releasing == nil {
			stuck = append(stuck, e)
		}
	}
	j.mu.Unlock()
	for _, e := range stuck {
		j.release(e, "")
	}
	return errors.Join(err1, err2, err3, err4, err5)
}
