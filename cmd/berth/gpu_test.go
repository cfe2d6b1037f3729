package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
)

func gpuList() *api.GPUList {
	busy, off := 97, false
	return &api.GPUList{Driver: "550.54.15", CUDA: "12.4", Waiting: 2, Faults: []string{"GPU 3 does not answer"}, GPUs: []api.GPU{
		{
			UUID: "GPU-aa", Model: "NVIDIA A100", Memory: 40 << 30, NUMA: 0, State: api.GPULeased, Persistence: &off,
			Holder:  &api.GPUHolder{Job: "j7-01234567", ID: 7, Project: "group/\x1b[2Jproject", Since: time.Now()},
			Reading: &api.GPUReading{At: time.Now(), Utilisation: &busy, MemoryUsed: 31 << 30, PIDs: []int{12, 13}},
			Links:   []api.GPULink{{To: "GPU-ab", NVLinks: 12, Path: "NUMA node"}},
		},
		{UUID: "GPU-ab", Index: 1, Model: "NVIDIA A100", Memory: 40 << 30, NUMA: -1, State: api.GPUQuarantined, Quarantine: &api.GPUQuarantine{Cause: "xid", Reason: "XID 79", Since: time.Now()}},
		{UUID: "MIG-a", Index: 2, Model: "NVIDIA A100", MIG: "1g.5gb", Memory: 5 << 30, NUMA: -1, State: api.GPUFree},
		{UUID: "MIG-b", Index: 2, Model: "NVIDIA A100", MIG: "1g.5gb", Memory: 5 << 30, NUMA: -1, State: api.GPUFree},
	}}
}

func TestWriteGPUs(t *testing.T) {
	var out strings.Builder
	require.NoError(t, writeGPUs(&out, gpuList()))
	require.Contains(t, out.String(), "WARNING: GPU 3 does not answer\n")
	require.Regexp(t, `0 +GPU-aa +NVIDIA A100 +40GiB +31GiB +97% +leased +7 +group/�\[2Jproject`, out.String())
	require.Regexp(t, `1 +GPU-ab .* quarantined +- +- +XID 79\n`, out.String())
	require.Regexp(t, `2 +MIG-a +NVIDIA A100 MIG 1g.5gb +5GiB`, out.String())
	require.Contains(t, out.String(), "2 jobs wait for GPUs.\n")

	out.Reset()
	require.NoError(t, writeGPUs(&out, &api.GPUList{Reason: "no NVIDIA driver"}))
	require.Equal(t, "No job can have GPUs of this node: no NVIDIA driver\n", out.String())
}

func TestWriteGPU(t *testing.T) {
	list := gpuList()
	var out strings.Builder
	require.NoError(t, writeGPU(&out, list, &list.GPUs[0]))
	require.Regexp(t, `Job: +7 of group/�\[2Jproject, for Less than a second\n`, out.String())
	require.Regexp(t, `Persistence: +off`, out.String())
	require.Regexp(t, `Processes: +12 13\n`, out.String())
	require.Regexp(t, `Link: +GPU-ab: 12 × NVLink, PCIe by NUMA node\n`, out.String())
	out.Reset()
	require.NoError(t, writeGPU(&out, list, &list.GPUs[1]))
	require.Regexp(t, `Quarantine: +for Less than a second \(xid\): XID 79\n`, out.String())
	require.NotContains(t, out.String(), "NUMA")
}

func TestFindGPU(t *testing.T) {
	for name, c := range map[string]struct{ want, says string }{
		"GPU-aa": {"GPU-aa", ""},
		"GPU-":   {"", `2 GPUs are called "GPU-"`},
		"1":      {"GPU-ab", ""},
		"2":      {"", `2 GPUs are called "2"`},
		"MIG-b":  {"MIG-b", ""},
		"9":      {"", `no GPU "9" on this node`},
	} {
		g, err := findGPU(gpuList(), name)
		if c.says != "" {
			require.ErrorContains(t, err, c.says)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, g.UUID)
	}
}
