package container

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/node/api"
)

// withGPUs gives a container the job's GPUs, ready-made by berthd, and keeps
// all others from it: by the device cgroup, which lets it use none that is not
// listed, or, where it lets the privileged use all, by refusing the rest.
func withGPUs(g *api.GPUs, privileged bool) oci.SpecOpts {
	return func(ctx context.Context, client oci.Client, c *containers.Container, s *oci.Spec) error {
		if g == nil {
			return nil
		}
		if s.Linux.Resources == nil {
			s.Linux.Resources = &specs.LinuxResources{}
		}
		rule := func(d specs.LinuxDevice, allow bool) {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
				Allow: allow, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: "rwm",
			})
		}
		if privileged {
			for _, d := range g.Withheld {
				s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool {
					return o.Type == d.Type && o.Major == d.Major && o.Minor == d.Minor
				})
				rule(d, false)
			}
		}
		for _, d := range g.Nodes {
			s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == d.Path })
			s.Linux.Devices = append(s.Linux.Devices, d)
			rule(d, true)
		}
		s.Mounts = append(s.Mounts, g.Mounts...)
		for _, gid := range g.GIDs {
			if !slices.Contains(s.Process.User.AdditionalGids, gid) {
				s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, gid)
			}
		}
		addHooks(s, g.Hooks)
		// A runtime of NVIDIA's on the host would add what images ask for by
		// this variable, and most ask for all GPUs.
		return oci.WithEnv(append([]string{"NVIDIA_VISIBLE_DEVICES=void"}, g.Env...))(ctx, client, c, s)
	}
}

func addHooks(s *oci.Spec, h *specs.Hooks) {
	if h == nil {
		return
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, h.CreateRuntime...)
	s.Hooks.CreateContainer = append(s.Hooks.CreateContainer, h.CreateContainer...)
	s.Hooks.StartContainer = append(s.Hooks.StartContainer, h.StartContainer...)
}
