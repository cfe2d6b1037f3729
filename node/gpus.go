package node

import (
	"cmp"
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/gpu"
	gpuprocess "gitlab.com/berth-ci/berth/gpu/process"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
)

// GPUs leases the node's GPUs to jobs.
type GPUs interface {
	// Acquire waits for what a job asks for. It is nil where there are none,
	// for jobs that ask for none.
	Acquire(ctx context.Context, job executor.Identity, profile string, s executor.GPUs, variables map[string]string, progress func(string)) (*api.GPUs, error)
	// Adopt takes over what a job was given by an earlier berthd.
	Adopt(job executor.Identity, profile string, since time.Time, g *api.GPUs) error
	// Release takes back what a job has, once nothing of it runs; it is
	// idempotent.
	Release(ctx context.Context, job string) error
}

// openGPUs makes the keeper of the node's GPUs. It starts nothing.
func (d *daemon) openGPUs(boot string) (err error) {
	args := []string{"serve", "--root", d.config.GPU.DriverRoot}
	driver := gpuprocess.New(d.log, cmp.Or(d.config.GPU.Program, programs.LocateGPU(d.config.Runtime.Path)), args...)
	d.onClose(func(context.Context) error { return driver.Close() })
	d.gpus, err = gpu.NewKeeper(driver, gpu.Settings{
		File: filepath.Join(d.config.Root, "gpu-quarantine.json"),
		CDI:  d.config.GPUSpecs(),
		Uses: d.config.GPUUses(),
		Root: d.config.GPU.DriverRoot,
		Boot: boot,
		CPUs: d.cgroups.CPUs(d.config.Limits.Cgroup),
	}, d.log)
	return err
}

// retakeGPUs gives jobs of an earlier berthd what they have, the dead ones,
// too: until they are released, something of them may run.
func retakeGPUs(g GPUs, log *logrus.Entry, records ...[]journal.Record) {
	for _, list := range records {
		for _, r := range list {
			if err := g.Adopt(r.Job.Identity, r.Job.Profile, r.Job.Since, r.Admission.GPUs); err != nil {
				log.WithError(err).WithField("job", r.Job.Key).Error("cannot give a job its GPUs again")
			}
		}
	}
}

// admitToGPUs leases a job what it asks for. The journal learns of it before
// anything uses it.
func (j *Jobs) admitToGPUs(ctx context.Context, e *job, p executor.Profile, r executor.Request, progress func(string)) error {
	g, err := j.GPUs.Acquire(ctx, r.Job, e.record.Job.Profile, p.GPU, r.Variables, progress)
	if err != nil {
		return err
	}
	if g != nil && len(g.Devices) > 0 {
		j.log.WithFields(logrus.Fields{"job": e.key, "gpus": strings.Join(g.Devices, ",")}).Info("leased GPUs to a job")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	e.record.Admission.GPUs = g
	return nil
}
