package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"

	"github.com/BurntSushi/toml"
)

// disabled are the plugins that jobs have no use for: Kubernetes' and those
// that reach for the host (/opt/containerd, /var/run/nri).
var disabled = []string{
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.grpc.v1.cri",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.nri.v1.nri",
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.internal.v1.opt",
	"io.containerd.monitor.container.v1.restart",
	"io.containerd.http.v1.pprof",
	"io.containerd.metrics.v1.grpc-prometheus",
	"io.containerd.metrics.v1.grpc-otel",
}

// snapshotters, of which only the configured one is enabled.
var snapshotters = []string{"blockfile", "btrfs", "devmapper", "erofs", "native", "overlayfs", "zfs"}

// containerdConfig is what of containerd's configuration is not its default.
// Version 3 is read by all 2.x.
type containerdConfig struct {
	Version  int         `toml:"version"`
	Root     string      `toml:"root"`
	State    string      `toml:"state"`
	Disabled []string    `toml:"disabled_plugins"`
	Imports  []string    `toml:"imports"`
	GRPC     grpcConfig  `toml:"grpc"`
	Debug    debugConfig `toml:"debug"`
	// Timeouts, by what containerd calls them.
	Timeouts map[string]string `toml:"timeouts"`
	Plugins  map[string]any    `toml:"plugins"`
}

type grpcConfig struct {
	Address string `toml:"address"`
	GID     int    `toml:"gid"`
}

type debugConfig struct {
	Level string `toml:"level"`
}

func (r *Runtime) configuration() string { return filepath.Join(r.state(), "containerd.toml") }

// configure writes containerd's configuration, and says whether it is
// another than the last.
func (r *Runtime) configure() (changed bool, err error) {
	c := r.Containerd()
	off := slices.Clone(disabled)
	for _, s := range snapshotters {
		if s != c.Snapshotter {
			off = append(off, "io.containerd.snapshotter.v1."+s)
		}
	}
	if c.Snapshotter != "erofs" {
		off = append(off, "io.containerd.differ.v1.erofs", "io.containerd.mount-handler.v1.erofs")
	}
	var b bytes.Buffer
	err = toml.NewEncoder(&b).Encode(containerdConfig{
		Version:  3,
		Root:     r.root(),
		State:    r.state(),
		Disabled: off,
		Imports:  []string{}, // not the host's
		GRPC:     grpcConfig{Address: c.Address, GID: r.gid},
		Debug:    debugConfig{Level: r.config.LogLevel},
		// Of 5 seconds a busy host needs more, and what is cut off is left.
		Timeouts: map[string]string{"io.containerd.timeout.shim.cleanup": "1m"},
		Plugins: map[string]any{
			// Jobs come and go in bursts of small changes: collect once after
			// a burst, and after deletions too, so that disk is given back.
			"io.containerd.gc.v1.scheduler": map[string]any{
				"pause_threshold":    0.02,
				"deletion_threshold": 20,
				"mutation_threshold": 200,
				"schedule_delay":     "1s",
			},
			"io.containerd.monitor.task.v1.cgroups": map[string]any{"no_prometheus": true},
		},
	})
	if err != nil {
		return false, err
	}
	last, err := os.ReadFile(r.configuration())
	if err == nil && bytes.Equal(last, b.Bytes()) {
		return false, nil
	}
	return true, os.WriteFile(r.configuration(), b.Bytes(), 0o600)
}
