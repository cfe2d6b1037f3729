package gpu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

const (
	// sampleInterval is how often it is looked what jobs use.
	sampleInterval = time.Second
	// noteInterval is how often it is written down.
	noteInterval = 10 * time.Second
	// refreshInterval is how often it is looked what there is, and how it is;
	// idleInterval on a node without a driver.
	refreshInterval = 30 * time.Second
	idleInterval    = time.Minute
	// settleTimeout is how long a device may take to come to rest after a job.
	settleTimeout  = 10 * time.Second
	settleInterval = 100 * time.Millisecond
)

// Settings of a Keeper.
type Settings struct {
	// File keeps the quarantines.
	File string
	// CDI is the directory of specs for the node's docker daemon; empty for
	// none.
	CDI string
	// Uses is the directory that keeps what jobs make of their devices from
	// one berthd to the next; empty for none.
	Uses string
	// Root is where the driver is, as the driver has it; empty for /.
	Root string
	// Boot of the host that this is.
	Boot string
	// CPUs that jobs run on, as the kernel lists them; empty for all.
	CPUs string
}

// Keeper keeps the node's GPUs: it knows what there is, leases it, looks how
// it is and what is made of it, and keeps from jobs what is not in order.
type Keeper struct {
	driver   Driver
	pool     *Pool
	settings Settings
	log      *logrus.Entry

	// ready is closed when it was once asked what there is.
	ready     chan struct{}
	readyOnce sync.Once
	// hurry has the next look come at once.
	hurry chan struct{}
	// saving keeps the quarantines' file in order.
	saving sync.Mutex
	// noting does so with the files of uses.
	noting sync.Mutex

	mu       sync.Mutex
	trouble  error // why the driver cannot be asked
	baseline map[string]executor.Bytes
	readings map[string]Reading
	uses     map[string]*use // by job
}

// NewKeeper makes a keeper; Run has it look after things.
func NewKeeper(d Driver, s Settings, log *logrus.Entry) (*Keeper, error) {
	s.Root = cmp.Or(s.Root, "/")
	k := &Keeper{
		driver: d, pool: NewPool(s.CPUs), settings: s, log: log,
		ready: make(chan struct{}), hurry: make(chan struct{}, 1),
		trouble:  fmt.Errorf("they have not been looked at yet: %w", errdefs.ErrUnavailable),
		baseline: map[string]executor.Bytes{}, readings: map[string]Reading{}, uses: map[string]*use{},
	}
	shelf, err := loadShelf(s.File)
	if err != nil {
		return nil, err
	}
	k.pool.restore(shelf)
	for uuid, q := range shelf {
		k.baseline[uuid] = q.Rest
	}
	return k, nil
}

// Run looks after the GPUs until ctx ends. Leases are adopted before.
func (k *Keeper) Run(ctx context.Context) {
	k.tidy()
	var group sync.WaitGroup
	group.Go(func() { k.sample(ctx) })
	group.Go(func() { k.listen(ctx) })
	defer group.Wait()
	for {
		k.refresh(ctx)
		pause := refreshInterval
		if errdefs.IsNotFound(k.why()) {
			pause = idleInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-k.hurry:
		case <-time.After(pause):
		}
	}
}

// why tells why the driver cannot be asked.
func (k *Keeper) why() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.trouble
}

// refresh looks what there is, and how it is.
func (k *Keeper) refresh(ctx context.Context) {
	i, err := k.driver.Inventory(ctx)
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	before := k.trouble
	k.trouble = err
	k.mu.Unlock()
	defer k.readyOnce.Do(func() { close(k.ready) })
	if err != nil {
		if before == nil || before.Error() != err.Error() { // say it once
			if errdefs.IsNotFound(err) {
				k.log.WithField("reason", err).Info("this node offers no GPUs")
			} else {
				k.log.WithError(err).Error("cannot ask for the node's GPUs")
			}
		}
		if errdefs.IsNotFound(err) {
			k.pool.Update(&Inventory{})
		}
		return
	}
	k.announce(k.pool.Inventory(), i)
	k.pool.Update(i)
	k.examine(ctx, i)
}

// announce logs what has come and gone.
func (k *Keeper) announce(old, now *Inventory) {
	if old == nil || len(old.Devices) == 0 {
		k.log.WithFields(logrus.Fields{"driver": now.Driver, "cuda": now.CUDA}).Infof("this node offers %s", now.Summary())
	} else {
		if old.Driver != now.Driver {
			k.log.Infof("the NVIDIA driver is now %s, it was %s", now.Driver, old.Driver)
		}
		for _, d := range old.Devices {
			if _, there := now.find(d.UUID); !there {
				k.log.WithField("gpu", d.UUID).Warnf("%s is gone", d.Name())
			}
		}
		for _, d := range now.Devices {
			if _, there := old.find(d.UUID); !there {
				k.log.WithField("gpu", d.UUID).Infof("there is a new %s", d.Name())
			}
		}
	}
	if old == nil || !slices.Equal(old.Faults, now.Faults) {
		for _, fault := range now.Faults {
			k.log.Warn(fault)
		}
	}
}

// examine looks how all devices are, and judges those that no job has.
func (k *Keeper) examine(ctx context.Context, i *Inventory) {
	uuids := make([]string, len(i.Devices))
	for n, d := range i.Devices {
		uuids[n] = d.UUID
	}
	if len(uuids) == 0 {
		return
	}
	free := k.pool.free()
	readings, err := k.driver.Read(ctx, uuids)
	if err != nil {
		if ctx.Err() == nil {
			k.log.WithError(err).Error("cannot look how the GPUs are")
		}
		return
	}
	still := k.pool.free()
	shelf := k.pool.Shelf()
	for uuid, r := range readings {
		rests := free[uuid] && still[uuid]
		q, shelved := shelf[uuid]
		k.note(uuid, r, rests && !shelved)
		v := judgeHealth(r)
		if rests {
			v = judgeRest(r, k.restOf(uuid))
		}
		switch {
		case v.cause != "":
			k.quarantine(uuid, v.cause, v.reason)
		case shelved && rests && !v.unsure && q.over(k.settings.Boot):
			if k.pool.Unquarantine(uuid) == nil {
				k.log.WithField("gpu", uuid).Infof("the GPU is well again: %s", q.Reason)
				k.save()
			}
		}
	}
}

// note remembers a reading. The least memory that is in use at rest is what
// jobs are held against.
func (k *Keeper) note(uuid string, r Reading, rests bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.readings[uuid] = r
	memoryRead := !slices.ContainsFunc(r.Unread, func(s string) bool { return strings.HasPrefix(s, "memory") })
	if rests && len(r.Processes) == 0 && r.Lost == "" && memoryRead {
		if old, ok := k.baseline[uuid]; !ok && r.MemoryUsed <= unknownRest || r.MemoryUsed < old {
			k.baseline[uuid] = r.MemoryUsed
		}
	}
}

// restOf is how much of a device's memory is in use at rest.
func (k *Keeper) restOf(uuid string) executor.Bytes {
	k.mu.Lock()
	defer k.mu.Unlock()
	if b, ok := k.baseline[uuid]; ok {
		return b
	}
	return unknownRest
}

// quarantine keeps a device from jobs, and says so once.
func (k *Keeper) quarantine(uuid, cause, reason string) {
	before, had := k.pool.Shelf()[uuid]
	err := k.pool.Quarantine(uuid, Quarantine{Cause: cause, Reason: reason, Since: time.Now().UTC(), Boot: k.settings.Boot, Rest: k.restOf(uuid)})
	after := k.pool.Shelf()[uuid]
	if err != nil || had && before == after {
		return
	}
	k.log.WithFields(logrus.Fields{"gpu": uuid, "cause": cause}).Warnf("a GPU is put in quarantine: %s", reason)
	k.save()
}

// save writes the quarantines down. They hold without, until berthd ends.
func (k *Keeper) save() {
	k.saving.Lock()
	defer k.saving.Unlock()
	if err := saveShelf(k.settings.File, k.pool.Shelf()); err != nil {
		k.log.WithError(err).Error("a restart will forget which GPUs are in quarantine")
	}
}

// sample looks what jobs make of their devices.
func (k *Keeper) sample(ctx context.Context) {
	tick, note := time.NewTicker(sampleInterval), time.NewTicker(noteInterval)
	defer tick.Stop()
	defer note.Stop()
	defer k.noteUses()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.sampleNow(ctx)
		case <-note.C:
			k.noteUses()
		}
	}
}

// noteUses writes down what jobs have made of their devices so far.
func (k *Keeper) noteUses() {
	if k.settings.Uses == "" {
		return
	}
	for _, l := range k.pool.Leases() {
		job := l.Job.Key()
		k.noting.Lock()
		k.mu.Lock()
		u := k.uses[job] // none of a job that has ended meanwhile
		var text []byte
		var err error
		if u != nil {
			text, err = json.Marshal(u)
		}
		k.mu.Unlock()
		if err == nil && text != nil {
			err = ledger(k.settings.Uses).put(job, text)
		}
		k.noting.Unlock()
		if err != nil {
			k.log.WithError(err).Warn("a restart will forget what a job has made of its GPUs")
		}
	}
}

func (k *Keeper) sampleNow(ctx context.Context) {
	holder := map[string]string{}
	for _, l := range k.pool.Leases() {
		for _, uuid := range l.Devices {
			holder[uuid] = l.Job.Key()
		}
	}
	if len(holder) == 0 {
		return
	}
	readings, err := k.driver.Read(ctx, slices.Sorted(maps.Keys(holder)))
	if err != nil {
		return // refresh says so
	}
	lost := false
	k.mu.Lock()
	for job := range maps.Values(holder) {
		if u := k.uses[job]; u != nil {
			u.look(time.Now())
		}
	}
	for uuid, r := range readings {
		k.readings[uuid] = r
		if u := k.uses[holder[uuid]]; u != nil {
			u.add(uuid, r)
		}
		lost = lost || r.Lost != ""
	}
	k.mu.Unlock()
	if lost {
		k.wake()
	}
}

// wake has the next look come at once.
func (k *Keeper) wake() {
	select {
	case k.hurry <- struct{}{}:
	default:
	}
}

// listen acts on what the driver reports.
func (k *Keeper) listen(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := k.driver.Events(ctx)
		for _, e := range events {
			k.react(e)
		}
		if err == nil {
			continue
		}
		pause := sampleInterval
		if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) {
			pause = idleInterval
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (k *Keeper) react(e Event) {
	i := k.pool.Inventory()
	if i == nil {
		return
	}
	for _, d := range i.Devices {
		if !e.concerns(d) {
			continue
		}
		for _, l := range k.pool.Leases() {
			if slices.Contains(l.Devices, d.UUID) {
				k.mu.Lock()
				if u := k.uses[l.Job.Key()]; u != nil {
					u.fault(d.UUID, e.XID)
				}
				k.mu.Unlock()
			}
		}
		if slices.Contains(applicationXIDs, e.XID) {
			k.log.WithFields(logrus.Fields{"gpu": d.UUID, "xid": e.XID}).Info("a program has made a fault on a GPU")
			continue
		}
		k.quarantine(d.UUID, CauseXID, fmt.Sprintf("the driver reported XID %d, a fault of the GPU: see NVIDIA's list of XIDs and the kernel's log", e.XID))
	}
	k.noteUses()
	k.wake()
}

// Acquire gives a job the GPUs that it asks for, waiting for them if need be.
// A job that asks for none learns what to keep away from, if there is any.
func (k *Keeper) Acquire(ctx context.Context, job executor.Identity, profile string, s executor.GPUs, variables map[string]string, progress func(string)) (*api.GPUs, error) {
	c, err := NewClaim(job, profile, s, variables)
	if err != nil {
		return nil, err
	}
	if c == nil {
		if nodes := nodesOf(k.settings.Root); len(nodes) > 0 {
			return &api.GPUs{Withheld: nodes}, nil
		}
		return nil, nil
	}
	select {
	case <-k.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := k.why(); errdefs.IsNotFound(err) {
		return nil, executor.Failf("the job asks for GPUs (%s), but this node offers none: %w: choose a runner that does by its tags", c.Request, err)
	} else if err != nil {
		return nil, fmt.Errorf("the node's GPUs cannot be used: %w", err)
	}
	l, err := k.pool.Acquire(ctx, c, progress)
	if err != nil {
		return nil, err
	}
	i := k.pool.Inventory()
	g, err := bind(i, nodesOf(k.settings.Root), l.Devices, c.Capabilities)
	if err == nil && k.settings.CDI != "" {
		err = writeCDI(k.settings.CDI, job.Key(), i, l.Devices, c.Capabilities)
	}
	if err != nil {
		k.pool.Release(job.Key())
		return nil, err
	}
	g.Services = c.Request.Services
	k.mu.Lock()
	k.uses[job.Key()] = newUse(i, l.Devices, l.Since)
	k.mu.Unlock()
	return g, nil
}

// Adopt takes over what a job was given before berthd was started.
func (k *Keeper) Adopt(job executor.Identity, profile string, since time.Time, g *api.GPUs) error {
	if g == nil || len(g.Devices) == 0 {
		return nil
	}
	if err := k.pool.Adopt(Lease{Job: job, Profile: profile, Devices: g.Devices, Since: since}); err != nil {
		return err
	}
	u, err := ledger(k.settings.Uses).get(job.Key())
	if err != nil {
		k.log.WithError(err).Warn("a job's log will not tell all that it has made of its GPUs")
	}
	if u == nil {
		u = newUse(nil, g.Devices, since)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uses[job.Key()] = u
	return nil
}

// Release takes a job's GPUs back once nothing of it runs any more. What does
// not come to rest is put in quarantine. It is safe twice, and without GPUs.
func (k *Keeper) Release(ctx context.Context, job string) error {
	l, ok := k.pool.Lease(job)
	if !ok {
		return nil
	}
	for uuid, v := range k.settle(ctx, l.Devices) {
		k.quarantine(uuid, v.cause, v.reason)
	}
	k.mu.Lock()
	if u := k.uses[job]; u != nil {
		for _, d := range u.report(l.Devices).Devices {
			log := k.log.WithFields(logrus.Fields{"job": job, "gpu": d.UUID, "memory_peak": d.MemoryPeak.String(), "used": d.Used})
			if d.Mean != nil {
				log = log.WithField("utilisation", fmt.Sprintf("%.0f%%", *d.Mean))
			}
			log.Info("a job gives its GPU back")
		}
	}
	delete(k.uses, job)
	k.mu.Unlock()
	k.noting.Lock()
	err := ledger(k.settings.Uses).remove(job)
	k.noting.Unlock()
	if k.settings.CDI != "" {
		err = errors.Join(err, removeCDI(k.settings.CDI, job))
	}
	k.pool.Release(job)
	return err
}

// settle waits until devices are at rest, and tells why others are not.
func (k *Keeper) settle(ctx context.Context, uuids []string) map[string]verdict {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	restless := map[string]verdict{}
	for _, uuid := range uuids {
		restless[uuid] = verdict{cause: CauseLost, reason: "the driver did not tell how it is after a job"}
	}
	for {
		readings, err := k.driver.Read(ctx, slices.Sorted(maps.Keys(restless)))
		if err != nil && ctx.Err() == nil {
			for uuid := range restless {
				restless[uuid] = verdict{cause: CauseLost, reason: fmt.Sprintf("the driver does not tell how it is after a job: %v", err)}
			}
		}
		for uuid, r := range readings {
			k.mu.Lock()
			k.readings[uuid] = r
			k.mu.Unlock()
			v := judgeRest(r, k.restOf(uuid))
			switch {
			case v.unsure:
				restless[uuid] = verdict{cause: CauseLost, reason: "the driver does not tell how it is after a job: " + strings.Join(r.Unread, ", ")}
			case v.cause != "":
				restless[uuid] = v
			default:
				delete(restless, uuid)
			}
		}
		if len(restless) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return restless
		case <-time.After(settleInterval):
		}
	}
}

// Use tells what a job has made of its GPUs so far.
func (k *Keeper) Use(ctx context.Context, job string) (*api.GPUUse, error) {
	l, ok := k.pool.Lease(job)
	if !ok {
		return nil, fmt.Errorf("job %s has no GPUs: %w", job, errdefs.ErrNotFound)
	}
	k.sampleNow(ctx) // however short the job was
	k.mu.Lock()
	defer k.mu.Unlock()
	u := k.uses[job]
	if u == nil {
		return nil, fmt.Errorf("job %s is getting its GPUs: %w", job, errdefs.ErrUnavailable)
	}
	for uuid, d := range u.Devices {
		if known, ok := k.pool.Inventory().find(uuid); ok && d.Name == "" { // adopted
			d.Name, d.Memory = known.Name(), known.Memory
		}
	}
	return u.report(l.Devices), nil
}

// Quarantine keeps a GPU from further jobs until somebody ends it.
func (k *Keeper) Quarantine(uuid, reason string) error {
	q := Quarantine{Cause: CauseOperator, Reason: reason, Since: time.Now().UTC(), Boot: k.settings.Boot, Rest: k.restOf(uuid)}
	if err := k.pool.Quarantine(uuid, q); err != nil {
		return err
	}
	k.log.WithField("gpu", uuid).Warnf("a GPU is put in quarantine by an operator: %s", reason)
	k.save()
	return nil
}

// Unquarantine gives a GPU back to jobs. If it is not well, the next look
// takes it away again; but what memory is in use now is taken to be at rest.
func (k *Keeper) Unquarantine(uuid string) error {
	if err := k.pool.Unquarantine(uuid); err != nil {
		return err
	}
	k.mu.Lock()
	if r, ok := k.readings[uuid]; ok && len(r.Processes) == 0 {
		k.baseline[uuid] = r.MemoryUsed
	}
	k.mu.Unlock()
	k.log.WithField("gpu", uuid).Info("an operator gives a GPU back to jobs")
	k.save()
	k.wake()
	return nil
}

// tidy removes what is kept of jobs that are gone.
func (k *Keeper) tidy() {
	leased := func(job string) bool {
		_, ok := k.pool.Lease(job)
		return ok
	}
	if err := errors.Join(tidy(k.settings.CDI, leased), tidy(k.settings.Uses, leased)); err != nil {
		k.log.WithError(err).Warn("cannot remove what is kept of former jobs' GPUs")
	}
}
