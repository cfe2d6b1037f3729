package gpu

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gitlab.com/berth-ci/berth/executor"
)

// Claim is a job's wish for GPUs, and what its profile says of it.
type Claim struct {
	Job      executor.Identity
	Profile  string
	Settings executor.GPUs
	Request  Request
	// Capabilities of the driver that the job wants.
	Capabilities []string
}

// NewClaim reads what a job asks for and checks it against its profile. It
// is nil for a job that wants no GPU. Errors are the job's own.
func NewClaim(job executor.Identity, profile string, s executor.GPUs, variables map[string]string) (*Claim, error) {
	r, err := ParseRequest(variables, s.Count)
	if err != nil || r.Count == 0 {
		return nil, err
	}
	capabilities, err := capabilitiesOf(variables)
	if err != nil {
		return nil, err
	}
	c := &Claim{Job: job, Profile: profile, Settings: s, Request: r, Capabilities: capabilities}
	switch {
	case len(s.Models) == 0:
		return nil, executor.Failf("the job asks for GPUs (%s), but profile %q allows none: choose another runner by its tags", r, profile)
	case s.PerJob > 0 && r.Count > s.PerJob:
		return nil, executor.Failf("%s: %d is more than profile %q allows a job: ask for %d at most, or for a runner with a larger profile", CountVariable, r.Count, profile, s.PerJob)
	case s.Total > 0 && r.Count > s.Total:
		return nil, executor.Failf("%s: %d is more than profile %q allows all of its jobs together: ask for %d at most, or for a runner with a larger profile", CountVariable, r.Count, profile, s.Total)
	}
	return c, nil
}

// wait is how long the claim may stay in the queue.
func (c *Claim) wait() time.Duration { return time.Duration(c.Settings.Wait) }

// suits tells whether a device is of the kind asked for, free or not.
func (c *Claim) suits(d Device) bool {
	r := c.Request
	return d.Unusable == "" && d.MIG == r.MIGProfile && d.Memory >= r.Memory && isPart(r.Model, d.Model) && c.allows(d)
}

// allows tells whether the profile has the device's model.
func (c *Claim) allows(d Device) bool {
	return slices.ContainsFunc(c.Settings.Models, func(model string) bool { return model == "*" || isPart(model, d.Model) })
}

// isPart finds a model in NVIDIA's name of it, whatever the case, at the
// border of words: "a10" is no part of "NVIDIA A100-PCIE-40GB".
func isPart(part, name string) bool {
	part, name = strings.ToLower(part), strings.ToLower(name)
	if part == "" {
		return true
	}
	letter := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	for from := 0; ; {
		at := strings.Index(name[from:], part)
		if at < 0 {
			return false
		}
		at += from
		end := at + len(part)
		if (at == 0 || !letter(name[at-1])) && (end == len(name) || !letter(name[end])) {
			return true
		}
		from = at + 1
	}
}

// possible says why the claim can never be met with what there is; nothing
// if it can, if only once others have ended.
func (c *Claim) possible(i *Inventory) error {
	suited := 0
	var whole, forbidden, otherwise int
	for _, d := range i.Devices {
		switch {
		case c.suits(d):
			suited++
		case d.Unusable == "" && d.MIG == "":
			whole++
		}
		if d.Unusable == "" && isPart(c.Request.Model, d.Model) && d.MIG == c.Request.MIGProfile && !c.allows(d) {
			forbidden++
		}
		if d.Unusable == "" && d.MIG != "" && c.Request.MIGProfile == "" {
			otherwise++
		}
	}
	if suited >= c.Request.Count {
		return nil
	}
	hint := "ask for what there is, or choose a runner that has it by its tags"
	switch {
	case forbidden > 0 && suited == 0:
		hint = fmt.Sprintf("profile %q allows %s", c.Profile, strings.Join(c.Settings.Models, ", "))
	case otherwise > 0 && whole == 0 && suited == 0:
		hint = "it offers MIG instances: name their profile by " + MIGProfileVariable
	}
	return executor.Failf("the job asks for %s, but this node has %s: %s", c.Request, i.Summary(), hint)
}
