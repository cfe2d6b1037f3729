package proxy

import (
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/moby/moby/api/types/container"
)

// What a container of a job may have. Fields that are not named here are the
// container's own affair: they reach nothing but itself, within the limits of
// the job's cgroup. Each field of HostConfig is in one of the functions here,
// in createContainer, or in harmless of policy_test.go.

// dockerCaps are docker's default capabilities.
var dockerCaps = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
	"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// safeSecurityOpts only ever take something away, or are the default.
var safeSecurityOpts = []string{
	"no-new-privileges", "no-new-privileges=true", "no-new-privileges:true", "no-new-privileges=false", "no-new-privileges:false",
	"apparmor=docker-default", "apparmor:docker-default", "seccomp=builtin", "seccomp:builtin",
}

// safeUlimits concern no more than the processes of the container.
var safeUlimits = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nofile", "nproc", "rss", "sigpending", "stack"}

// safeSysctls are of namespaces that each container has of its own.
func safeSysctl(name string) bool {
	for _, prefix := range []string{"net.", "kernel.shm", "kernel.msg", "fs.mqueue."} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "kernel.sem"
}

func capName(name string) string {
	return strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

// checkHost looks at what could reach the host. Privileged containers, where
// the profile allows them, have no such bounds.
func (p *Proxy) checkHost(h *container.HostConfig, privileged bool) error {
	if h.Privileged && !privileged {
		return refuse("privileged containers; the node's operator may allow them for chosen images by docker_privileged_images of the profile, for what registries say that they are")
	}
	for _, c := range []struct {
		what string
		asks bool
	}{
		{"PidMode host: the host's processes", h.PidMode.IsHost()},
		{"IpcMode host: the host's IPC", h.IpcMode.IsHost()},
		{"UTSMode: the host's name", h.UTSMode != ""},
		{"UsernsMode: the host's users", h.UsernsMode != "" && !privileged},
		{"Cgroup: another container's cgroup", h.Cgroup != ""},
		{"VolumeDriver " + h.VolumeDriver + ": volumes are of driver local", h.VolumeDriver != "" && h.VolumeDriver != "local"},
		{"StorageOpt", len(h.StorageOpt) > 0},
		{"Annotations: they are for the runtime", len(h.Annotations) > 0},
		{"Isolation " + string(h.Isolation), h.Isolation != "" && h.Isolation != "default"},
		{"OomScoreAdj below 0: others would be killed first", h.OomScoreAdj < 0},
		{"Runtime " + h.Runtime + ": containers run in runc", h.Runtime != "" && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2"},
		{"MaskedPaths: they are the node's", h.MaskedPaths != nil && !privileged},
		{"ReadonlyPaths: they are the node's", h.ReadonlyPaths != nil && !privileged},
		{"CgroupnsMode host", h.CgroupnsMode.IsHost() && cgroups.Mode() == cgroups.Unified},
	} {
		if c.asks {
			return refuse("%s", c.what)
		}
	}
	switch h.LogConfig.Type {
	case "", "json-file", "local", "none":
	default:
		return refuse("log driver %s; json-file, local and none are there", h.LogConfig.Type)
	}
	if err := checkTmpfs(h.Tmpfs); err != nil {
		return err
	}
	if privileged {
		return p.checkResources(&h.Resources, true)
	}
	allowed := slices.Concat(dockerCaps, p.job.Profile.CapAdd)
	for i := range allowed {
		allowed[i] = capName(allowed[i])
	}
	for _, name := range h.CapAdd {
		if !slices.Contains(allowed, capName(name)) && !slices.Contains(allowed, "ALL") {
			return refuse("capability %s; besides docker's own there are those of cap_add of the profile", name)
		}
	}
	for _, opt := range h.SecurityOpt {
		if !slices.Contains(safeSecurityOpts, opt) {
			name, _, _ := strings.Cut(opt, "=")
			return refuse("security option %s: the node's profiles hold", name)
		}
	}
	for name := range h.Sysctls {
		if !safeSysctl(name) {
			return refuse("sysctl %s: it is the host's", name)
		}
	}
	return p.checkResources(&h.Resources, false)
}

// checkResources looks at resources, also when they are changed later.
func (p *Proxy) checkResources(r *container.Resources, privileged bool) error {
	for _, c := range []struct {
		what string
		asks bool
	}{
		{"CpuRealtimePeriod and CpuRealtimeRuntime: real time is the node's", r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0},
		{"OomKillDisable: the job would hang", r.OomKillDisable != nil && *r.OomKillDisable},
		{"block devices by name", len(r.BlkioWeightDevice)+len(r.BlkioDeviceReadBps)+len(r.BlkioDeviceReadIOps)+len(r.BlkioDeviceWriteBps)+len(r.BlkioDeviceWriteIOps) > 0},
		{"DeviceCgroupRules", len(r.DeviceCgroupRules) > 0 && !privileged},
	} {
		if c.asks {
			return refuse("%s", c.what)
		}
	}
	for _, u := range r.Ulimits {
		if u == nil || !slices.Contains(safeUlimits, u.Name) {
			return refuse("an ulimit other than %s", strings.Join(safeUlimits, ", "))
		}
	}
	for _, d := range r.Devices {
		if !privileged && !p.hasDevice(d.PathOnHost) {
			return refuse("device %s; jobs have those of devices of the profile", d.PathOnHost)
		}
	}
	return nil
}

func (p *Proxy) hasDevice(path string) bool {
	return slices.ContainsFunc(p.job.Profile.Devices, func(device string) bool {
		host, _, _ := strings.Cut(device, ":")
		return host == path
	})
}

// checkLabels keeps jobs from saying that something is another's.
func checkLabels(labels map[string]string) error {
	for name := range labels {
		if strings.HasPrefix(name, labelPrefix) {
			return refuse("label %s: labels of %s* are the node's", name, labelPrefix)
		}
	}
	return nil
}

// label adds the job's to labels.
func (p *Proxy) label(labels map[string]string) map[string]string {
	all := map[string]string{JobLabel: p.job.Key}
	for name, value := range labels {
		all[name] = value
	}
	all[JobLabel] = p.job.Key
	return all
}
