package proxy

import (
	"slices"

	"github.com/moby/moby/api/types/container"

	"gitlab.com/berth-ci/berth/gpu"
)

// leased has a container get GPUs of the job's lease, whatever way it asks:
// --gpus, --device nvidia.com/gpu=…, or deploy.resources of compose. For
// dockerd they are devices of the job's own CDI spec.
func (p *Proxy) leased(r *container.Resources) error {
	if len(r.DeviceRequests) == 0 {
		return nil
	}
	if len(p.job.GPUs) == 0 {
		return refuse("DeviceRequests: the job has no GPU, it may ask for some by %s", gpu.CountVariable)
	}
	var names []string
	for _, asked := range r.DeviceRequests {
		isGPU := slices.ContainsFunc(asked.Capabilities, func(all []string) bool { return slices.Contains(all, "gpu") })
		switch {
		case len(asked.Options) > 0:
			return refuse("options of DeviceRequests")
		case asked.Driver == "cdi", asked.Driver == "nvidia", asked.Driver == "" && isGPU:
		default:
			return refuse("DeviceRequests of driver %q; the job has GPUs alone", asked.Driver)
		}
		uuids, err := gpu.Within(p.job.GPUs, asked.Count, asked.DeviceIDs)
		if err != nil {
			return invalid("%v", err)
		}
		for _, uuid := range uuids {
			if name := gpu.CDIName(p.job.Key, uuid); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if r.DeviceRequests = nil; len(names) > 0 {
		r.DeviceRequests = []container.DeviceRequest{{Driver: "cdi", DeviceIDs: names}}
	}
	return nil
}
