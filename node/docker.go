package node

import (
	"context"
	"path/filepath"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker"
	"gitlab.com/berth-ci/berth/node/journal"
)

// dockerOf says where a job has its docker; nil where it gets none.
func (j *Jobs) dockerOf(a api.Admission) *api.Docker {
	if j.Docker == nil || !a.Grant.Profile.Docker {
		return nil
	}
	return &api.Docker{Dir: filepath.Join(a.Dirs.Job, "docker")}
}

// attachDocker gives a job its docker, if it is to have it.
func (j *Jobs) attachDocker(r journal.Record) error {
	a := r.Admission
	if a.Docker == nil || j.Docker == nil {
		return nil
	}
	var gpus []string
	if a.GPUs != nil {
		gpus = a.GPUs.Devices
	}
	return j.Docker.Attach(docker.Job{
		Key: a.Job, Identity: r.Job.Identity, Profile: a.Grant.Profile, Cgroup: a.Cgroup, Network: r.Network,
		Container: container.ID(a.Job, container.RoleBuild), Dir: a.Docker.Dir, TLS: a.Grant.HasDocker(),
		GPUs: gpus,
	})
}

// endDocker ends what a job runs in docker.
func (j *Jobs) endDocker(ctx context.Context, job string) error {
	if j.Docker == nil {
		return nil
	}
	return j.Docker.End(ctx, job)
}

// removeDocker removes what a job has in docker.
func (j *Jobs) removeDocker(ctx context.Context, job string) error {
	if j.Docker == nil {
		return nil
	}
	return j.Docker.Remove(ctx, job)
}

// dockerJobs lists the jobs that have anything in docker.
func (j *Jobs) dockerJobs(ctx context.Context) ([]string, error) {
	if j.Docker == nil {
		return nil, nil
	}
	return j.Docker.Jobs(ctx)
}
