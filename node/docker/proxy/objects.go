package proxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
)

// containerRecord is what is to be known of a container of the job's.
type containerRecord struct {
	// Name and Image are as the job wrote them.
	Name  string `json:"name"`
	Image string `json:"image"`
	// HostConfig is as the job asked for it.
	HostConfig json.RawMessage `json:"host_config,omitempty"`
	Bindings   []binding       `json:"bindings,omitempty"`
	PublishAll bool            `json:"publish_all,omitempty"`
	// Sources are the paths in the job of what is bound, by those on the node.
	Sources    map[string]string `json:"sources,omitempty"`
	Privileged bool              `json:"privileged,omitempty"`
}

// networkRecord is what is to be known of a network that the job made.
type networkRecord struct {
	Name   string `json:"name"`
	Nth    int    `json:"nth"`
	Subnet string `json:"subnet"`
}

// objects are the job's own, past ones included: their ids are never used
// again, and events still speak of them.
type objects struct {
	mu         sync.Mutex
	containers map[string]*containerRecord
	byName     map[string]string // containers' ids
	networks   map[string]*networkRecord
	volumes    map[string]bool // on the daemon
	images     map[string]bool // digests of those without a name
	hidden     map[string]bool // names that the job has removed
	execs      map[string]string
	gone       map[string]bool // of the containers
}

func (o *objects) init() {
	o.containers, o.byName = map[string]*containerRecord{}, map[string]string{}
	o.networks, o.volumes = map[string]*networkRecord{}, map[string]bool{}
	o.images, o.hidden, o.execs = map[string]bool{}, map[string]bool{}, map[string]string{}
	o.gone = map[string]bool{}
}

// recall reads what is on record.
func (p *Proxy) recall() error {
	return p.Ledger.Each(p.job.Key, func(kind, id string, about json.RawMessage) error {
		switch kind {
		case ledger.Container:
			r := new(containerRecord)
			if err := json.Unmarshal(about, r); err != nil {
				return fmt.Errorf("container %s: %w", id, err)
			}
			p.objects.containers[id], p.objects.byName[r.Name] = r, id
		case ledger.Network:
			r := new(networkRecord)
			if err := json.Unmarshal(about, r); err != nil {
				return fmt.Errorf("network %s: %w", id, err)
			}
			p.objects.networks[id] = r
		case ledger.Volume:
			p.objects.volumes[id] = true
		case ledger.Image:
			p.objects.images[id] = true
		case ledger.Hidden:
			p.objects.hidden[id] = true
		}
		return nil
	})
}

func (p *Proxy) addContainer(id string, r *containerRecord) error {
	if err := p.Ledger.Put(p.job.Key, ledger.Container, id, r); err != nil {
		return err
	}
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	p.objects.containers[id], p.objects.byName[r.Name] = r, id
	return nil
}

var (
	idPattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	partPattern = regexp.MustCompile(`^[0-9a-f]{1,64}$`)
	// namePattern is docker's for containers and volumes.
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
)

// container resolves what a job calls a container to its id.
func (p *Proxy) container(ref string) (string, error) {
	id, _, err := p.containerRecord(ref)
	return id, err
}

func (p *Proxy) containerRecord(ref string) (string, *containerRecord, error) {
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	name := strings.TrimPrefix(ref, "/")
	if r, ok := p.objects.containers[name]; ok {
		return name, r, nil
	}
	if id, ok := p.objects.byName[name]; ok {
		return id, p.objects.containers[id], nil
	}
	if id, ok := prefixed(p.objects.containers, name, p.objects.gone); ok {
		return id, p.objects.containers[id], nil
	}
	return "", nil, missing("No such container: %s", ref)
}

// prefixed finds the one id that begins with a part of it, but for some.
func prefixed[V any](all map[string]V, part string, but map[string]bool) (string, bool) {
	if !partPattern.MatchString(part) {
		return "", false
	}
	found := ""
	for id := range all {
		if strings.HasPrefix(id, part) && !but[id] {
			if found != "" {
				return "", false
			}
			found = id
		}
	}
	return found, found != ""
}

// owns tells whether a container is the job's.
func (p *Proxy) owns(id string) (*containerRecord, bool) {
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	r, ok := p.objects.containers[id]
	return r, ok
}

func (p *Proxy) containerIDs() []string {
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	return slices.Collect(maps.Keys(p.objects.containers))
}

// unnamed gives a container's name free.
func (p *Proxy) unnamed(id string) {
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	if r := p.objects.containers[id]; r != nil && p.objects.byName[r.Name] == id {
		delete(p.objects.byName, r.Name)
	}
}

// removed notes that a container is no more, and gives its name and ports free.
func (p *Proxy) removed(id string) {
	p.unnamed(id)
	p.objects.mu.Lock()
	first := !p.objects.gone[id]
	p.objects.gone[id] = true
	record := p.objects.containers[id]
	p.objects.mu.Unlock()
	p.stopped(id)
	if first && record != nil {
		p.unpin(record)
	}
}
