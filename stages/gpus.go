package stages

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"

	"gitlab.com/berth-ci/berth/container"
	"gitlab.com/berth-ci/berth/node/api"
)

// lastStage is the one that gitlab-runner ends each job with whose output is
// still in the job log.
const lastStage = "cleanup_file_variables"

// gpus is what a container of the job has of the job's GPUs: the helper has
// nothing to compute, services only where the job says so.
func (b *berth) gpus(name string) *api.GPUs {
	g := b.admission.GPUs
	service := name != container.RoleBuild && name != container.RoleHelper
	if g == nil || name == container.RoleBuild || service && g.Services {
		return g
	}
	return &api.GPUs{Withheld: append(g.Withheld[:len(g.Withheld):len(g.Withheld)], g.Nodes...)}
}

// tellGPUUse ends the job log with what the job has made of its GPUs.
func (s *Stage) tellGPUUse(st *state, stage string) {
	if stage != lastStage || st.Admission.GPUs == nil || len(st.Admission.GPUs.Devices) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	use, err := s.Berthd.GPUUse(ctx, st.Job)
	if err != nil {
		return // berthd's log has it, too
	}
	writeGPUUse(os.Stdout, use)
}

func writeGPUUse(w io.Writer, use *api.GPUUse) {
	idle := 0
	for _, d := range use.Devices {
		var parts []string
		if d.Mean != nil && d.Peak != nil {
			parts = append(parts, fmt.Sprintf("%.0f%% busy on average, %d%% at most", *d.Mean, *d.Peak))
		}
		parts = append(parts, fmt.Sprintf("%v of %v memory at most", d.MemoryPeak, d.Memory))
		if d.Energy != nil {
			parts = append(parts, units.CustomSize("%.4g %s", *d.Energy, 1000, []string{"J", "kJ", "MJ", "GJ"}))
		}
		if len(d.Throttled) > 0 {
			parts = append(parts, "slowed down: "+strings.Join(d.Throttled, ", "))
		}
		fmt.Fprintf(w, "GPU %s (%s): %s\n", d.Name, d.UUID, strings.Join(parts, "; "))
		if d.Lost != "" {
			fmt.Fprintf(w, "WARNING: it was lost meanwhile: %s\n", d.Lost)
		}
		for _, xid := range d.XIDs {
			fmt.Fprintf(w, "WARNING: the driver reported XID %d on it meanwhile: https://docs.nvidia.com/deploy/xid-errors\n", xid)
		}
		if d.Samples > 0 && !d.Used {
			idle++
		}
	}
	if use.Unwatched > 0 {
		fmt.Fprintf(w, "NOTE: for %v nobody looked, since berthd or the driver did not answer; only energy is known of that time\n", use.Unwatched.Round(time.Second))
	}
	if n := len(use.Devices); idle > 0 {
		fmt.Fprintf(w, "HINT: the job asked for %d and used %d: others wait for what stands idle (BERTH_GPU_COUNT)\n", n, n-idle)
	}
}
