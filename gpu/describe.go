package gpu

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// holdersNamed is how many of the jobs that hold GPUs a line names.
const holdersNamed = 5

// describe says where a claim stands, or nothing once it was called. It is an
// error when the claim can no longer be met.
func (p *Pool) describe(t *ticket) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	place := slices.Index(p.waiting, t)
	if place < 0 {
		return "", nil
	}
	if err := t.claim.possible(p.inventory); err != nil {
		return "", err
	}
	s := fmt.Sprintf("place %d of %d for %s; ", place+1, len(p.waiting), t.claim.Request)
	if total := t.claim.Settings.Total; total > 0 && p.held(t.claim.Profile)+t.claim.Request.Count > total {
		s += fmt.Sprintf("profile %q has %d of its %d", t.claim.Profile, p.held(t.claim.Profile), total)
		return s + p.whoHas(t, func(l *Lease) int {
			if l.Profile != t.claim.Profile {
				return 0
			}
			return len(l.Devices)
		}), nil
	}
	suited, free, shelved := map[string]bool{}, 0, 0
	for _, d := range p.inventory.Devices {
		if !t.claim.suits(d) {
			continue
		}
		suited[d.UUID] = true
		switch {
		case p.holders[d.UUID] != "":
		case p.shelf[d.UUID] != nil:
			shelved++
		default:
			free++
		}
	}
	s += fmt.Sprintf("%d of %d are free", free, len(suited))
	if shelved > 0 {
		s += fmt.Sprintf(", %d in quarantine", shelved)
	}
	return s + p.whoHas(t, func(l *Lease) (n int) {
		for _, uuid := range l.Devices {
			if suited[uuid] {
				n++
			}
		}
		return n
	}), nil
}

// whoHas lists the jobs that have devices that count, those with most first.
func (p *Pool) whoHas(t *ticket, count func(*Lease) int) string {
	var holders []*Lease
	for _, l := range p.leases {
		if count(l) > 0 {
			holders = append(holders, l)
		}
	}
	if len(holders) == 0 {
		return ""
	}
	slices.SortFunc(holders, func(a, b *Lease) int {
		return cmp.Or(cmp.Compare(count(b), count(a)), a.Since.Compare(b.Since), cmp.Compare(a.Job.ID, b.Job.ID))
	})
	var names []string
	for _, l := range holders[:min(len(holders), holdersNamed)] {
		// Job logs may be public: other projects are not named in them.
		whose := "another project"
		if l.Job.ProjectKey() == t.claim.Job.ProjectKey() {
			whose = l.Job.Project
		}
		names = append(names, fmt.Sprintf("job %d (%s) has %d", l.Job.ID, whose, count(l)))
	}
	if more := len(holders) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more jobs", more))
	}
	return ": " + strings.Join(names, ", ")
}
