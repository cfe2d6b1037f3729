package gpu

import (
	"fmt"
	"regexp"
	"strconv"

	"gitlab.com/berth-ci/berth/executor"
)

// Job variables by which a job asks for GPUs.
const (
	CountVariable      = "BERTH_GPU_COUNT"
	ModelVariable      = "BERTH_GPU_MODEL"
	MemoryVariable     = "BERTH_GPU_MEMORY"
	MIGProfileVariable = "BERTH_GPU_MIG_PROFILE"
	ServicesVariable   = "BERTH_GPU_SERVICES"
)

// Request is what a job asks for: Count devices that all have the rest.
type Request struct {
	Count int
	// Model is a part of NVIDIA's name: a100, A100-PCIE-40GB.
	Model string
	// Memory is what each device has at least.
	Memory executor.Bytes
	// MIGProfile asks for instances, rather than whole GPUs: 1g.5gb.
	MIGProfile string
	// Services says that the services get the same devices.
	Services bool
}

// maxCount is more than any node has.
const maxCount = 1024

var (
	modelPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$`)
	// As NVIDIA writes them: compute slices, memory, attributes.
	migPattern = regexp.MustCompile(`^([1-7]c\.)?[1-7]g\.[1-9][0-9]*gb(\+[a-z0-9.]+)*$`)
)

// ParseRequest reads the job variables. Any of them asks for at least one GPU
// where the count is not said, else for as many as the profile gives by
// default; a count of 0 asks for none. Errors are the job's own and name the
// variable.
func ParseRequest(variables map[string]string, byDefault int) (Request, error) {
	r := Request{Count: byDefault}
	set := func(key string, parse func(string) error) error {
		value, ok := variables[key]
		if !ok || value == "" {
			return nil
		}
		if err := parse(value); err != nil {
			return executor.Failf("%s: %w", key, err)
		}
		return nil
	}
	for _, v := range []struct {
		key   string
		parse func(string) error
	}{
		{ModelVariable, func(s string) error {
			if !modelPattern.MatchString(s) {
				return fmt.Errorf("model %q: expected a part of its name, such as a100 or A100-PCIE-40GB", s)
			}
			r.Model, r.Count = s, max(r.Count, 1)
			return nil
		}},
		{MemoryVariable, func(s string) error {
			r.Count = max(r.Count, 1)
			return r.Memory.UnmarshalText([]byte(s))
		}},
		{MIGProfileVariable, func(s string) error {
			if !migPattern.MatchString(s) {
				return fmt.Errorf("MIG profile %q: expected one such as 1g.5gb or 3g.20gb", s)
			}
			r.MIGProfile, r.Count = s, max(r.Count, 1)
			return nil
		}},
		{ServicesVariable, func(s string) (err error) {
			if r.Services, err = strconv.ParseBool(s); err != nil {
				return fmt.Errorf("%q: expected true or false", s)
			}
			return nil
		}},
		{CountVariable, func(s string) (err error) {
			r.Count, err = strconv.Atoi(s)
			if err != nil || r.Count < 0 || r.Count > maxCount {
				return fmt.Errorf("count %q: expected a number of GPUs, such as 1", s)
			}
			return nil
		}},
	} {
		if err := set(v.key, v.parse); err != nil {
			return Request{}, err
		}
	}
	return r, nil
}

// String says what is asked for, as in "2 × a100 with 40GiB".
func (r Request) String() string {
	s := fmt.Sprintf("%d × ", r.Count)
	switch {
	case r.Model != "" && r.MIGProfile != "":
		s += r.Model + " MIG " + r.MIGProfile
	case r.MIGProfile != "":
		s += "MIG " + r.MIGProfile
	case r.Model != "":
		s += r.Model
	default:
		s += "GPU"
	}
	if r.Memory > 0 {
		s += fmt.Sprintf(" with at least %v", r.Memory)
	}
	return s
}
