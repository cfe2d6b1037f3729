// Package config reads berthd's configuration and refuses what cannot work,
// naming file, line, key and what was expected. It looks at the text alone:
// whether a directory or a group exists is for those who use it to find out.
package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"gitlab.com/berth-ci/berth/executor"
)

// DefaultPath is where berthd finds its configuration unless told otherwise.
const DefaultPath = "/etc/berth/berthd.toml"

// HostContainerd is where a containerd listens that the host runs itself.
const HostContainerd = "/run/containerd/containerd.sock"

// HostDockerd is where a dockerd listens that the host runs itself.
const HostDockerd = "/var/run/docker.sock"

// Config is berthd's configuration. Every key is documented in
// node/berthd.toml.example.
type Config struct {
	Root       string                      `toml:"root"`
	State      string                      `toml:"state"`
	Socket     string                      `toml:"socket"`
	Group      string                      `toml:"group"`
	LogLevel   string                      `toml:"log_level"`
	Runtime    Runtime                     `toml:"runtime"`
	Network    Network                     `toml:"network"`
	Docker     Docker                      `toml:"docker"`
	Registries Registries                  `toml:"registries"`
	Limits     Limits                      `toml:"limits"`
	Cache      Cache                       `toml:"cache"`
	Images     Images                      `toml:"images"`
	GPU        GPU                         `toml:"gpu"`
	Profiles   map[string]executor.Profile `toml:"profile"`
}

// Runtime says which containerd the jobs run in.
type Runtime struct {
	// Managed means that berthd runs a containerd of its own.
	Managed bool `toml:"managed"`
	// Path is the directory with the programs of a managed runtime, by
	// default libexec/berth beside the directory of berthd itself. What is
	// not there is looked for on the PATH.
	Path string `toml:"path"`
	// Address of the host's containerd, when not managed.
	Address     string `toml:"address"`
	Namespace   string `toml:"namespace"`
	Snapshotter string `toml:"snapshotter"`
}

// Network says where the jobs' networks are cut from.
type Network struct {
	Subnet   netip.Prefix `toml:"subnet"`
	Uplinks  netip.Prefix `toml:"uplinks"`
	Pool     int          `toml:"pool"`
	MTU      int          `toml:"mtu"`
	Instance string       `toml:"instance"`
}

// Docker says which docker daemon answers the jobs' docker.
type Docker struct {
	// Enabled means that there is one at all.
	Enabled bool `toml:"enabled"`
	// Managed means that berthd runs a dockerd of its own on the containerd
	// that jobs run in.
	Managed bool `toml:"managed"`
	// Address of the host's dockerd, when not managed.
	Address string `toml:"address"`
	// Networks is where networks that jobs make are cut from.
	Networks netip.Prefix `toml:"networks"`
}

// Registries says how images are pulled.
type Registries struct {
	HostsDir     string `toml:"hosts_dir"`
	DockerConfig string `toml:"docker_config"`
}

// Limits hold for all jobs of the node together.
type Limits struct {
	// Cgroup is the parent of all jobs' cgroups, from the root of each
	// hierarchy.
	Cgroup string `toml:"cgroup"`
}

// Cache says how much the node keeps of caches and build results.
type Cache struct {
	// MaxSize is of all together, MinFree what is to be free on their disk;
	// 0 is no limit. MaxAge is since the last use.
	MaxSize executor.Bytes    `toml:"max_size"`
	MinFree executor.Bytes    `toml:"min_free"`
	MaxAge  executor.Duration `toml:"max_age"`
	// Rollback is how many generations before the newest are kept.
	Rollback int `toml:"rollback"`
	// Shares of projects, by their paths; 1 for those not named.
	Shares map[string]int `toml:"shares"`
}

// Images says how much the node keeps of images.
type Images struct {
	// MaxSize is of all together, MinFree what is to be free on their disk;
	// 0 is no limit. MaxAge is since the last use.
	MaxSize executor.Bytes    `toml:"max_size"`
	MinFree executor.Bytes    `toml:"min_free"`
	MaxAge  executor.Duration `toml:"max_age"`
}

// GPU says how the node's GPUs are found.
type GPU struct {
	// Program asks the driver; empty is berth-gpu of the runtime's programs,
	// or beside berthd.
	Program string `toml:"program"`
	// DriverRoot is where the driver's files are.
	DriverRoot string `toml:"driver_root"`
}

// GPUUses is where berthd keeps what jobs make of their GPUs.
func (c *Config) GPUUses() string { return filepath.Join(c.State, "gpu-use") }

// GPUSpecs is where a docker daemon of the node finds the GPUs of jobs.
func (c *Config) GPUSpecs() string { return filepath.Join(c.State, "cdi") }

// Default is the configuration of an empty file: a managed runtime and one
// profile, named default.
func Default() *Config {
	c := settings()
	c.complete()
	return c
}

// settings are the defaults of everything that has one of its own.
func settings() *Config {
	return &Config{
		Root:     "/var/lib/berth",
		State:    "/run/berth",
		LogLevel: "info",
		Runtime: Runtime{
			Managed:     true,
			Namespace:   "moby",
			Snapshotter: "overlayfs",
		},
		Network: Network{
			Subnet:   netip.MustParsePrefix("10.201.0.0/16"),
			Uplinks:  netip.MustParsePrefix("100.64.0.0/16"),
			Pool:     4,
			Instance: "0",
		},
		Docker: Docker{
			Enabled:  true,
			Managed:  true,
			Networks: netip.MustParsePrefix("10.202.0.0/16"),
		},
		Registries: Registries{
			HostsDir:     "/etc/berth/certs.d",
			DockerConfig: "/root/.docker/config.json",
		},
		Limits: Limits{Cgroup: "/berth"},
		GPU:    GPU{DriverRoot: "/"},
		Cache:  Cache{MinFree: 10 << 30, MaxAge: executor.Duration(30 * 24 * time.Hour), Rollback: 3},
		Images: Images{MinFree: 10 << 30, MaxAge: executor.Duration(14 * 24 * time.Hour)},
	}
}

// complete fills in what follows from other keys.
func (c *Config) complete() {
	if c.Socket == "" {
		c.Socket = filepath.Join(c.State, "berthd.sock")
	}
	if c.Runtime.Path == "" {
		if self, err := os.Executable(); err == nil {
			c.Runtime.Path = filepath.Join(filepath.Dir(self), "../libexec/berth")
		}
	}
	if !c.Runtime.Managed && c.Runtime.Address == "" {
		c.Runtime.Address = HostContainerd
	}
	if !c.Docker.Managed && c.Docker.Address == "" {
		c.Docker.Address = HostDockerd
	}
	if len(c.Profiles) == 0 {
		c.Profiles = map[string]executor.Profile{"default": executor.DefaultProfile()}
	}
}

// Load reads and checks a configuration file.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse decodes and checks a configuration that was read from the file name.
// The error joins all problems, each an *Error, in the order of the file.
func Parse(name string, text []byte) (*Config, error) {
	c := settings()
	d := decode(name, text, c)
	if d.broken {
		return nil, d.err()
	}
	c.complete()
	d.checkConfig(c)
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}
