package container

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/core/containers"
	apparmorhost "github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/docker/go-units"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/executor"
)

// apparmorProfile is loaded once per node, from containerd's template, which
// is docker's.
const apparmorProfile = "berth-default"

// Security is how far a container is kept from the node.
type Security struct {
	Privileged bool
	// KeepCaps are not dropped whatever CapDrop of the profile says.
	KeepCaps []string
}

// specOpts are the parts of a container's spec that do not come from its
// image: docker's defaults, with the profile's settings on top.
func specOpts(c Config) []oci.SpecOpts {
	opts := []oci.SpecOpts{
		oci.WithoutRunMount, // docker has none
		oci.WithNewPrivileges,
		oci.WithHostname(c.Hostname),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: c.Netns}),
		oci.WithCgroup(path.Join(c.Cgroup, strings.TrimPrefix(c.ID, c.Job+"-"))),
		withLimits(c.Limits),
		withRlimits(c.Profile.Ulimits),
		withSysctls(c.Profile.Sysctls),
		oci.WithMounts(profileMounts(c.Profile)),
		oci.WithMounts(c.Mounts),
	}
	cgroupMount := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}}
	if c.Security.Privileged {
		cgroupMount.Options[0] = "rw"
		opts = append(opts, oci.WithPrivileged, oci.WithAllDevicesAllowed, oci.WithHostDevices)
	} else {
		drop := slices.DeleteFunc(capNames(c.Profile.CapDrop), func(name string) bool {
			return slices.Contains(c.Security.KeepCaps, name)
		})
		opts = append(opts, withCaps(capNames(c.Profile.CapAdd), drop, c.Security.KeepCaps))
	}
	opts = append(opts, oci.WithMounts([]specs.Mount{cgroupMount}))
	if cgroups.Mode() == cgroups.Unified {
		// A v2 mount shows the cgroups of all jobs, and lets the privileged
		// raise their own limits, but for this.
		opts = append(opts, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}))
	}
	for _, device := range c.Profile.Devices {
		opts = append(opts, withDevice(device))
	}
	if !c.Security.Privileged {
		// Both look at what the spec has become, so they come last.
		if apparmorhost.HostSupports() {
			opts = append(opts, apparmor.WithDefaultProfile(apparmorProfile))
		}
		opts = append(opts, withSeccomp)
	}
	return opts
}

func withSeccomp(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) (err error) {
	if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
		return fmt.Errorf("make docker's default seccomp profile: %w", err)
	}
	return nil
}

// withLimits sets the job's limits on its container too, where programs look
// to size themselves. That they hold for all containers together is the job's
// cgroup's doing, the parent of this one.
func withLimits(l executor.Limits) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		if s.Linux.Resources == nil {
			s.Linux.Resources = &specs.LinuxResources{}
		}
		if n := int64(l.Memory); n > 0 {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &n, Swap: &n}
		}
		if l.CPUs > 0 {
			period := uint64(100_000)
			quota := int64(float64(l.CPUs) * float64(period))
			s.Linux.Resources.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
		}
		for i, m := range s.Mounts {
			if m.Destination == "/dev/shm" {
				options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
				options = append(options, fmt.Sprintf("size=%d", l.SHMSize))
				s.Mounts[i].Options = options
			}
		}
		return nil
	}
}

func withRlimits(ulimits map[string]string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		// Without any, limits are containerd's own, as docker does it.
		s.Process.Rlimits = nil
		for name, value := range ulimits {
			u, err := units.ParseUlimit(name + "=" + value)
			if err != nil {
				return fmt.Errorf("ulimit %s=%s: %w", name, value, err)
			}
			s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{
				Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard),
			})
		}
		return nil
	}
}

func withSysctls(sysctls map[string]string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		if len(sysctls) > 0 {
			s.Linux.Sysctl = sysctls
		}
		return nil
	}
}

// withCaps changes docker's default capabilities. CapDrop "ALL" leaves only
// what is added.
func withCaps(add, drop, keep []string) oci.SpecOpts {
	var opts []oci.SpecOpts
	if slices.Contains(drop, "CAP_ALL") {
		opts = append(opts, oci.WithCapabilities(keep))
	} else {
		opts = append(opts, oci.WithDroppedCapabilities(drop))
	}
	if slices.Contains(add, "CAP_ALL") {
		opts = append(opts, oci.WithAllCurrentCapabilities)
	} else {
		opts = append(opts, oci.WithAddedCapabilities(add))
	}
	return oci.Compose(opts...)
}

// capNames writes capabilities as the spec wants them: net_admin becomes
// CAP_NET_ADMIN.
func capNames(names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	}
	return out
}

// withDevice adds "/dev/x", "/dev/x:/dev/y" or "/dev/x:/dev/y:rwm".
func withDevice(device string) oci.SpecOpts {
	host, rest, _ := strings.Cut(device, ":")
	target, permissions, _ := strings.Cut(rest, ":")
	if target == "" {
		target = host
	}
	if permissions == "" {
		permissions = "rwm"
	}
	return oci.WithDevices(host, target, permissions)
}

// profileMounts are the profile's bind mounts ("/src:/dst[:ro|rw]") and
// tmpfs.
func profileMounts(p executor.Profile) []specs.Mount {
	var mounts []specs.Mount
	for _, m := range p.Mounts {
		parts := strings.SplitN(m, ":", 3)
		if len(parts) < 2 {
			continue // refused when the profile was read
		}
		mode := "rw"
		if len(parts) == 3 {
			mode = parts[2]
		}
		mounts = append(mounts, Bind(parts[0], parts[1], mode))
	}
	for target, options := range p.Tmpfs {
		mount := specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec"}}
		if options != "" {
			mount.Options = append(mount.Options, strings.Split(options, ",")...)
		}
		mounts = append(mounts, mount)
	}
	// A mount below another one comes after it.
	slices.SortFunc(mounts, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return mounts
}

// Bind is a bind mount; mode is "ro" or "rw".
func Bind(source, target, mode string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", mode}}
}

// Follow has a bind mount show what is mounted below its source later on.
func Follow(m specs.Mount) specs.Mount {
	m.Options = slices.Clone(m.Options)
	if i := slices.Index(m.Options, "rprivate"); i >= 0 {
		m.Options[i] = "rslave"
	}
	return m
}

// withProcess sets what runs. Docker's rules: an entrypoint of the job's
// replaces the image's and drops the image's command; [""] is no entrypoint.
func withProcess(c Config) oci.SpecOpts {
	return func(ctx context.Context, client oci.Client, oc *containers.Container, s *oci.Spec) error {
		if err := oci.WithImageConfig(c.Image)(ctx, client, oc, s); err != nil {
			return fmt.Errorf("read the image's configuration: %w", err)
		}
		image, err := c.Image.Spec(ctx)
		if err != nil {
			return fmt.Errorf("read the image's configuration: %w", err)
		}
		entrypoint, command := image.Config.Entrypoint, image.Config.Cmd
		if len(c.Entrypoint) > 0 {
			entrypoint, command = c.Entrypoint, nil
		}
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
		if len(c.Command) > 0 {
			command = c.Command
		}
		if c.Agent {
			command = agentCommand(entrypoint)
		}
		s.Process.Args = append(slices.Clone(entrypoint), command...)
		if len(s.Process.Args) == 0 {
			return errors.New("the image names no program to run: set `entrypoint` or `command`")
		}
		if c.User != "" {
			if err := oci.Compose(oci.WithUser(c.User), oci.WithAdditionalGIDs(c.User))(ctx, client, oc, s); err != nil {
				return fmt.Errorf("user %q: %w", c.User, err)
			}
		}
		if err := oci.WithEnv(c.Env)(ctx, client, oc, s); err != nil {
			return err
		}
		s.Process.Env = searchPath(s.Process.Env, c.PathPrefix)
		return nil
	}
}

// searchPath gives an environment without PATH docker's default one, and
// puts prefix before it.
func searchPath(env []string, prefix string) []string {
	if prefix != "" {
		prefix += ":"
	}
	for i, entry := range env {
		if path, ok := strings.CutPrefix(entry, "PATH="); ok {
			env[i] = "PATH=" + prefix + path
			return env
		}
	}
	return append(env, "PATH="+prefix+"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}
