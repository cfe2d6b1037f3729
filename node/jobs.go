package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker"
	"gitlab.com/berth-ci/berth/node/journal"
	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/resolver"
)

// Containers is what the jobs need of containerd.
type Containers interface {
	// Hold makes the lease that holds what a job makes.
	Hold(ctx context.Context, job string) error
	// Kill ends all processes of a job; it is idempotent.
	Kill(ctx context.Context, job string) error
	// Remove ends and removes all that a job has; it is idempotent.
	Remove(ctx context.Context, job string) error
	// Jobs lists the jobs that have anything.
	Jobs(ctx context.Context) ([]string, error)
}

// Networks gives each job a network of its own.
type Networks interface {
	Take(ctx context.Context, job, profile string) (network.Network, error)
	Join(ctx context.Context, n network.Network, name string, nth int) (network.Endpoint, error)
	Release(ctx context.Context, n network.Network) error
}

// Names answers DNS in the jobs' networks.
type Names interface {
	Put(ctx context.Context, job string, z resolver.Zone) error
	Remove(ctx context.Context, job string) error
}

// Sockets are those that jobs connect to, kept while berthd is away.
type Sockets interface {
	// Release ends what is kept of a job; it is idempotent.
	Release(ctx context.Context, job string) error
	// Jobs lists the jobs of which anything is kept.
	Jobs(ctx context.Context) ([]string, error)
}

// Docker gives jobs docker.
type Docker interface {
	// Attach gives a job its endpoint.
	Attach(job docker.Job) error
	// End ends a job's endpoint and containers; it is idempotent.
	End(ctx context.Context, job string) error
	// Remove removes what else there is of a job, after End; it is idempotent.
	Remove(ctx context.Context, job string) error
	// Jobs lists the jobs that have anything.
	Jobs(ctx context.Context) ([]string, error)
}

// Cgroups makes and removes the cgroups of jobs.
type Cgroups interface {
	Create(path string, l executor.Limits) error
	// Withhold keeps all that is in a cgroup from devices.
	Withhold(path string, devices []specs.LinuxDevice) error
	Remove(ctx context.Context, path string) error
	Children(path string) ([]string, error)
}

// Settings say what jobs get on this node.
type Settings struct {
	Profiles   map[string]executor.Profile
	Containerd api.Containerd
	// Cgroup is the parent of the jobs' cgroups.
	Cgroup string
	// Registries and DockerConfig are passed on to the jobs.
	Registries, DockerConfig string
	// Boot is the boot of the host that this is.
	Boot string
}

// Parts are what Jobs work with.
type Parts struct {
	Journal    *journal.Journal
	Dirs       *dirs
	Cgroups    Cgroups
	Containers Containers
	Networks   Networks
	Names      Names
	Sockets    Sockets
	GPUs       GPUs
	Docker     Docker // nil where there is none
	Caches     Caches
	Builds     Builds
}

// Jobs are the jobs on the node, from the time they ask for a berth until
// nothing is left of them.
type Jobs struct {
	Parts
	settings Settings
	log      *logrus.Entry
	queues   map[string]*queue
	// life ends with berthd; the jobs do not.
	life context.Context
	// attending counts what works for the jobs beside their calls.
	attending sync.WaitGroup

	mu       sync.Mutex
	jobs     map[string]*job
	watchers watchers
}

func newJobs(life context.Context, s Settings, log *logrus.Entry, p Parts) *Jobs {
	j := &Jobs{
		Parts: p, settings: s, log: log, life: life,
		queues: map[string]*queue{}, jobs: map[string]*job{}, watchers: watchers{},
	}
	for name, profile := range s.Profiles {
		j.queues[name] = &queue{profile: name, limit: profile.Concurrent}
	}
	return j
}

// job is one job. Its record is guarded by the lock of the jobs.
type job struct {
	key    string
	record journal.Record
	runner runner
	// life ends when the job is released, or berthd ends.
	life context.Context
	end  context.CancelCauseFunc
	// settled is closed when the job has been admitted, or has failed to be.
	settled chan struct{}
	// holds tells that there may be something to release.
	holds bool
	// writing keeps what is written to the journal in order.
	writing sync.Mutex
	// releasing is the attempt to release the job, if one is under way.
	releasing *attempt
}

// keyPattern matches what executor.Identity.Key makes. Keys become names of
// files and cgroups, so no other is ever accepted.
var keyPattern = regexp.MustCompile(`^j\d+-[0-9a-f]{8}$`)

// add makes an entry for a job; j.mu is held.
func (j *Jobs) add(r journal.Record) *job {
	e := &job{key: r.Job.Key, record: r, runner: runner{r.Job.Runner, r.TempDir}, settled: make(chan struct{})}
	e.life, e.end = context.WithCancelCause(j.life)
	j.jobs[e.key] = e
	return e
}

// settle makes an entry for a job that is not being admitted; j.mu is held.
func (j *Jobs) settle(r journal.Record) *job {
	e := j.add(r)
	e.holds = true
	close(e.settled)
	return e
}

// attend releases a job when its runner has ended.
func (j *Jobs) attend(e *job) {
	j.attending.Go(func() {
		if why := e.runner.wait(e.life); why != "" {
			j.release(e, why)
		}
	})
}

// update changes a job's state and tells the watchers.
func (j *Jobs) update(e *job, reason string, change func(*api.Job) error) (journal.Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := change(&e.record.Job); err != nil {
		return e.record, err
	}
	j.watchers.publish(api.Event{Job: e.record.Job, Reason: reason})
	return e.record, nil
}

// List gives the jobs, oldest first.
func (j *Jobs) List() []api.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.list()
}

func (j *Jobs) list() []api.Job {
	jobs := make([]api.Job, 0, len(j.jobs))
	for _, e := range j.jobs {
		jobs = append(jobs, e.record.Job)
	}
	slices.SortFunc(jobs, func(a, b api.Job) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Key, b.Key))
	})
	return jobs
}

// Watch gives the jobs as they are now and a channel of what changes, closed
// when the watcher lags too far behind. The caller calls stop in the end.
func (j *Jobs) Watch() (now []api.Job, changes <-chan api.Event, stop func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.watchers.add()
	return j.list(), c, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.watchers.remove(c)
	}
}

// Admission gives an admitted job's berth again.
func (j *Jobs) Admission(key string) (*api.Admission, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, err := j.admitted(key)
	if err != nil {
		return nil, err
	}
	a := e.record.Admission
	a.Grant.Profile.Environment = j.settings.Profiles[a.Profile].Environment
	return &a, nil
}

// Outcome notes how a stage of a job ended.
func (j *Jobs) Outcome(key string, o api.Outcome) error {
	j.mu.Lock()
	e, err := j.admitted(key)
	j.mu.Unlock()
	if err != nil {
		return err
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	record, err := j.update(e, "", func(job *api.Job) error {
		if job.State != api.StateAdmitted {
			return fmt.Errorf("job %s is being released: %w", key, errdefs.ErrFailedPrecondition)
		}
		job.Last = &o
		return nil
	})
	if err != nil {
		return err
	}
	return j.Journal.Put(record)
}

// admitted finds a job that has a berth; j.mu is held.
func (j *Jobs) admitted(key string) (*job, error) {
	e := j.jobs[key]
	if e == nil {
		return nil, fmt.Errorf("job %s is not on this node: %w", key, errdefs.ErrNotFound)
	}
	if state := e.record.Job.State; state != api.StateAdmitted {
		return nil, fmt.Errorf("job %s has no berth, it is %s: %w", key, state, errdefs.ErrFailedPrecondition)
	}
	return e, nil
}

// wait waits until nothing works for the jobs any more, after the end of
// their life.
func (j *Jobs) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { j.attending.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for releases under way: %w", context.Cause(ctx))
	}
}

// guard makes an error of a panic: a fault met by one job is no reason to
// leave all others without a daemon.
func (j *Jobs) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			j.log.Errorf("panic: %v\n%s", p, debug.Stack())
			err = fmt.Errorf("a fault in berthd, its log says more: %v: %w", p, errdefs.ErrInternal)
		}
	}()
	return f()
}

// profile finds a profile by its name.
func (j *Jobs) profile(name string) (executor.Profile, error) {
	p, ok := j.settings.Profiles[name]
	if !ok {
		known := slices.Sorted(maps.Keys(j.settings.Profiles))
		return p, executor.Failf("this node has no profile %q; it has: %s", name, strings.Join(known, ", "))
	}
	return p, nil
}
