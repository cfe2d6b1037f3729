package proxy

import (
	"fmt"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/docker/binds"
)

// pin mounts what a path of the job's build container leads to where dockerd
// finds it.
func (c *call) pin(path string, create bool, record *containerRecord) (source string, readOnly bool, err error) {
	pid, err := c.buildPID()
	if err != nil {
		return "", false, err
	}
	b, err := c.Binds.Pin(c.ctx, binds.Request{Job: c.job.Key, PID: pid, Cgroup: c.job.Cgroup, Path: path, Create: create})
	if errdefs.IsNotFound(err) && !create {
		return "", false, invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", path)
	}
	if err != nil {
		return "", false, err
	}
	record.Sources[b.Path] = path
	return b.Path, b.ReadOnly, nil
}

// unpin removes the mounts of a container that is no more, or never was.
func (p *Proxy) unpin(record *containerRecord) {
	for source := range record.Sources {
		if err := p.Binds.Unpin(source); err != nil {
			p.log.WithError(err).Warn("cannot remove a bind before its job ends")
		}
	}
}

// buildPID is the first process of the build container.
func (c *call) buildPID() (int, error) {
	made, err := c.Client.LoadContainer(c.ctx, c.job.Container)
	if err != nil {
		return 0, fmt.Errorf("find the job's build container: %w", err)
	}
	task, err := made.Task(c.ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("find the job's build container: %w", err)
	}
	return int(task.Pid()), nil
}
