package proxy

import (
	"encoding/json"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"
)

// TestRuntime: the default of the host's dockerd may be NVIDIA's.
func TestRuntime(t *testing.T) {
	c := &call{Proxy: &Proxy{}}
	for _, asked := range []string{"", "runc"} {
		h := &container.HostConfig{Runtime: asked}
		require.NoError(t, c.checkHost(h, false))
		c.own(h, &container.CreateRequest{Config: &container.Config{}})
		require.Equal(t, "runc", h.Runtime)
	}
	require.ErrorContains(t, c.checkHost(&container.HostConfig{Runtime: "nvidia"}, true), "Runtime nvidia")
}

// TestLeased asks as clients do: docker --gpus and --device, and compose for
// deploy.resources.reservations.devices.
func TestLeased(t *testing.T) {
	p := &Proxy{}
	p.job.Key = "j1-01234567"
	p.job.GPUs = []string{"GPU-a", "GPU-b"}
	a, b := "berth/gpu=j1-01234567.GPU-a", "berth/gpu=j1-01234567.GPU-b"
	for name, c := range map[string]struct {
		asked string
		want  []string
		says  string
	}{
		"--gpus all":                   {`[{"Driver":"","Count":-1,"DeviceIDs":null,"Capabilities":[["gpu"]],"Options":{}}]`, []string{a, b}, ""},
		"--gpus 1":                     {`[{"Count":1,"Capabilities":[["gpu"]],"Options":{}}]`, []string{a}, ""},
		"--gpus 0":                     {`[{"Count":0,"Capabilities":[["gpu"]],"Options":{}}]`, nil, ""},
		"--gpus 3":                     {`[{"Count":3,"Capabilities":[["gpu"]]}]`, nil, "the job has 2"},
		"--gpus device=1":              {`[{"DeviceIDs":["1"],"Capabilities":[["gpu"]]}]`, []string{b}, ""},
		"--gpus device=UUID":           {`[{"DeviceIDs":["GPU-b"],"Capabilities":[["gpu"]]}]`, []string{b}, ""},
		"--gpus device=OTHER":          {`[{"DeviceIDs":["GPU-c"],"Capabilities":[["gpu"]]}]`, nil, `"GPU-c" is not one of the job's`},
		"--gpus all,capabilities=":     {`[{"Count":-1,"Capabilities":[["gpu","utility"]]}]`, []string{a, b}, ""},
		"--gpus with options":          {`[{"Count":-1,"Capabilities":[["gpu"]],"Options":{"virtualization":"true"}}]`, nil, "options of DeviceRequests"},
		"--device nvidia.com/gpu=0":    {`[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0"]}]`, []string{a}, ""},
		"--device nvidia.com/gpu=all":  {`[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}]`, []string{a, b}, ""},
		"--device berth/gpu=":          {`[{"Driver":"cdi","DeviceIDs":["berth/gpu=j2-01234567.GPU-c"]}]`, nil, "is not one of the job's"},
		"--device vendor.com/net=eth0": {`[{"Driver":"cdi","DeviceIDs":["vendor.com/net=eth0"]}]`, nil, "is not one of the job's"},
		"compose, count: all":          {`[{"Driver":"nvidia","Count":-1,"Capabilities":[["gpu"]]}]`, []string{a, b}, ""},
		"compose, count: 2":            {`[{"Driver":"nvidia","Count":2,"Capabilities":[["gpu","compute"]]}]`, []string{a, b}, ""},
		"compose, device_ids":          {`[{"Driver":"nvidia","DeviceIDs":["0","GPU-b","0"],"Capabilities":[["gpu"]]}]`, []string{a, b}, ""},
		"compose, another driver":      {`[{"Driver":"amd","Count":-1,"Capabilities":[["gpu"]]}]`, nil, `driver "amd"`},
		"compose, no GPU":              {`[{"Count":1,"Capabilities":[["tpu"]]}]`, nil, `driver ""`},
		"the same twice":               {`[{"Count":1,"Capabilities":[["gpu"]]},{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0"]}]`, []string{a}, ""},
		"more in pieces":               {`[{"Count":2,"Capabilities":[["gpu"]]},{"DeviceIDs":["2"],"Capabilities":[["gpu"]]}]`, nil, "is not one of the job's"},
	} {
		t.Run(name, func(t *testing.T) {
			var r container.Resources
			require.NoError(t, json.Unmarshal([]byte(`{"DeviceRequests":`+c.asked+`}`), &r))
			err := p.leased(&r)
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			if c.want == nil {
				require.Empty(t, r.DeviceRequests)
				return
			}
			require.Equal(t, []container.DeviceRequest{{Driver: "cdi", DeviceIDs: c.want}}, r.DeviceRequests)
		})
	}
	p.job.GPUs = nil
	require.NoError(t, p.leased(&container.Resources{}))
	err := p.leased(&container.Resources{DeviceRequests: []container.DeviceRequest{{Count: -1, Capabilities: [][]string{{"gpu"}}}}})
	require.ErrorContains(t, err, "BERTH_GPU_COUNT")
}
