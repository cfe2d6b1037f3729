package container

import (
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
)

func device(path string, minor int64) specs.LinuxDevice {
	return specs.LinuxDevice{Path: path, Type: "c", Major: 195, Minor: minor}
}

func TestWithGPUs(t *testing.T) {
	g := &api.GPUs{
		Devices: []string{"GPU-a"}, Env: []string{"CUDA_VISIBLE_DEVICES=0"}, GIDs: []uint32{44},
		Nodes:    []specs.LinuxDevice{device("/dev/nvidia0", 0)},
		Withheld: []specs.LinuxDevice{device("/run/driver/dev/nvidia1", 1)},
		Mounts:   []specs.Mount{{Destination: "/usr/bin/nvidia-smi"}},
		Hooks:    &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/berth-gpu"}}},
	}
	apply := func(g *api.GPUs, privileged bool) *oci.Spec {
		s := &oci.Spec{
			Process: &specs.Process{Env: []string{"A=b", "NVIDIA_VISIBLE_DEVICES=all", "CUDA_VISIBLE_DEVICES=7"}},
			// As a privileged container's: all that the node has.
			Linux: &specs.Linux{Devices: []specs.LinuxDevice{device("/dev/nvidia0", 0), device("/dev/nvidia1", 1)}},
		}
		require.NoError(t, withGPUs(g, privileged)(t.Context(), nil, nil, s))
		return s
	}
	s := apply(g, true)
	require.ElementsMatch(t, []string{"A=b", "NVIDIA_VISIBLE_DEVICES=void", "CUDA_VISIBLE_DEVICES=0"}, s.Process.Env)
	require.Equal(t, []specs.LinuxDevice{device("/dev/nvidia0", 0)}, s.Linux.Devices)
	rules := s.Linux.Resources.Devices
	require.Len(t, rules, 2)
	require.False(t, rules[0].Allow)
	require.EqualValues(t, 1, *rules[0].Minor)
	require.True(t, rules[1].Allow)
	require.EqualValues(t, 0, *rules[1].Minor)
	require.Equal(t, []uint32{44}, s.Process.User.AdditionalGids)
	require.Len(t, s.Hooks.CreateContainer, 1)
	require.Equal(t, "/usr/bin/nvidia-smi", s.Mounts[0].Destination)

	s = apply(&api.GPUs{Withheld: g.Withheld}, false)
	require.Contains(t, s.Process.Env, "NVIDIA_VISIBLE_DEVICES=void")
	require.Contains(t, s.Process.Env, "CUDA_VISIBLE_DEVICES=7", "nothing to set it for")
	require.Empty(t, s.Linux.Resources.Devices, "all are refused that are not allowed")
	require.Nil(t, s.Hooks)

	s = apply(nil, true)
	require.Contains(t, s.Process.Env, "NVIDIA_VISIBLE_DEVICES=all", "a node without GPUs")
}
