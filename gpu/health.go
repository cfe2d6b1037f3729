package gpu

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"gitlab.com/berth-ci/berth/executor"
)

// memorySlack is how much more of a device's memory may be in use after a job
// than before: drivers keep some.
const memorySlack = 256 << 20

// applicationXIDs are faults of programs, not of devices, as NVIDIA's own
// plugin for Kubernetes has them: the next job is not concerned.
var applicationXIDs = []uint64{
	13,  // graphics engine exception
	31,  // memory page fault
	43,  // stopped processing
	45,  // preemptive cleanup, after others
	68,  // video processor exception
	109, // context switch timeout
}

// verdict is what a reading means for a device that should be at rest.
type verdict struct {
	cause, reason string
	// unsure keeps things as they are: what matters could not be read.
	unsure bool
}

// judgeHealth looks for what is broken, whoever uses the device.
func judgeHealth(r Reading) verdict {
	switch {
	case r.Lost != "":
		return verdict{cause: CauseLost, reason: r.Lost}
	case r.RemapFailed:
		return verdict{cause: CauseMemory, reason: "memory is broken and cannot be remapped: the GPU is to be replaced"}
	case r.RemapPending:
		return verdict{cause: CauseMemory, reason: "broken memory is remapped with the next reset of the GPU: nvidia-smi --gpu-reset"}
	case r.Uncorrected > 0:
		return verdict{cause: CauseMemory, reason: fmt.Sprintf("%d uncorrected memory errors since the driver was loaded: reset the GPU", r.Uncorrected)}
	}
	return verdict{}
}

// unknownRest is how much of a device's memory may be in use at rest before it
// was seen there.
const unknownRest = 1 << 30

// judgeRest looks for what was left on a device that no job has.
func judgeRest(r Reading, baseline executor.Bytes) verdict {
	if v := judgeHealth(r); v.cause != "" {
		return v
	}
	if len(r.Processes) > 0 {
		var names []string
		for _, p := range r.Processes {
			names = append(names, fmt.Sprintf("%d (%s)", p.PID, command(p.PID)))
		}
		return verdict{cause: CauseLeftover, reason: "no job has it, but it computes for process " + strings.Join(names, ", ")}
	}
	if r.MemoryUsed > baseline+memorySlack {
		return verdict{cause: CauseLeftover, reason: fmt.Sprintf("no job has it, but %v of its memory are in use; %v are at rest", r.MemoryUsed, baseline)}
	}
	return verdict{unsure: slices.ContainsFunc(r.Unread, func(s string) bool {
		return strings.HasPrefix(s, "processes") || strings.HasPrefix(s, "memory") || strings.HasPrefix(s, "health") ||
			strings.HasPrefix(s, "ECC") || strings.HasPrefix(s, "remapped")
	})}
}

// command is the name of a process of the host.
func command(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "ended, or of another container"
	}
	return strings.TrimSpace(string(name))
}

// over tells whether a quarantine ends by itself when the device is well.
func (q Quarantine) over(boot string) bool {
	switch q.Cause {
	case CauseLeftover, CauseLost, CauseMemory:
		return true
	case CauseXID:
		return q.Boot != boot
	}
	return false
}
