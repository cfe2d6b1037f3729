package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
)

// Causes of a quarantine. They decide what ends it.
const (
	// CauseOperator is somebody's decision; only somebody ends it.
	CauseOperator = api.QuarantineOperator
	// CauseLeftover is something that still uses the device. It ends when
	// nothing does.
	CauseLeftover = api.QuarantineLeftover
	// CauseLost is a device that does not answer. It ends when it does, and
	// is well.
	CauseLost = api.QuarantineLost
	// CauseMemory is broken memory, remapped or to be. It ends when the
	// device was reset and says that it is well.
	CauseMemory = api.QuarantineMemory
	// CauseXID is a fault that the driver has reported. Whether it is mended
	// does not show: it ends with the next boot, or by somebody.
	CauseXID = api.QuarantineXID
)

// Quarantine keeps a device from jobs. One that has it already keeps it.
type Quarantine struct {
	Cause  string    `json:"cause"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Boot   string    `json:"boot"`
	// Rest is how much memory is in use when the device is at rest.
	Rest executor.Bytes `json:"rest"`
}

// Quarantine keeps a device from further jobs. A cause that lasts longer
// takes the place of another.
func (p *Pool) Quarantine(uuid string, q Quarantine) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.inventory.find(uuid)
	if !known && p.holders[uuid] == "" && p.shelf[uuid] == nil {
		return fmt.Errorf("no GPU %q on this node: berth gpu ls lists them: %w", uuid, errdefs.ErrNotFound)
	}
	if old := p.shelf[uuid]; old != nil && lasting(old.Cause) >= lasting(q.Cause) && q.Cause != CauseOperator {
		return nil
	}
	p.shelf[uuid] = &q
	p.serve() // those who wait hear of it
	return nil
}

// lasting orders causes by what it takes to end them.
func lasting(cause string) int {
	return map[string]int{CauseLeftover: 0, CauseLost: 1, CauseMemory: 2, CauseXID: 3, CauseOperator: 4}[cause]
}

// Unquarantine gives a device back to the jobs.
func (p *Pool) Unquarantine(uuid string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shelf[uuid] == nil {
		return fmt.Errorf("GPU %q is not in quarantine: %w", uuid, errdefs.ErrNotFound)
	}
	delete(p.shelf, uuid)
	p.serve()
	return nil
}

// Shelf gives all quarantines by UUID.
func (p *Pool) Shelf() map[string]Quarantine {
	p.mu.Lock()
	defer p.mu.Unlock()
	shelf := make(map[string]Quarantine, len(p.shelf))
	for uuid, q := range p.shelf {
		shelf[uuid] = *q
	}
	return shelf
}

// restore puts back what an earlier berthd had in quarantine.
func (p *Pool) restore(shelf map[string]Quarantine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uuid, q := range shelf {
		p.shelf[uuid] = &q
	}
}

// loadShelf reads the quarantines of an earlier berthd.
func loadShelf(path string) (map[string]Quarantine, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	shelf := map[string]Quarantine{}
	if err == nil {
		err = json.Unmarshal(b, &shelf)
	}
	if err != nil {
		return nil, fmt.Errorf("read which GPUs are in quarantine: %w", err)
	}
	return shelf, nil
}

// saveShelf replaces the file whole.
func saveShelf(path string, shelf map[string]Quarantine) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("note which GPUs are in quarantine: %w", err)
		}
	}()
	b, err := json.MarshalIndent(shelf, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".next", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
