package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
)

func made(t *testing.T, change func(*config.Config)) (*Daemon, api.Containerd) {
	t.Helper()
	c := config.Default()
	c.Root, c.State = t.TempDir(), t.TempDir()
	c.Runtime.Path = t.TempDir()
	change(c)
	log := logrus.New()
	log.SetOutput(io.Discard)
	at := api.Containerd{Address: "/run/c.sock", Namespace: "moby", Snapshotter: "overlayfs"}
	d := New(c, at, nil, logrus.NewEntry(log))
	t.Cleanup(d.Leave)
	return d, at
}

// TestSettings looks for what must not be otherwise.
func TestSettings(t *testing.T) {
	d, _ := made(t, func(c *config.Config) { c.LogLevel = "warning" })
	read := func() map[string]any {
		text, err := d.settings()
		require.NoError(t, err)
		var s map[string]any
		require.NoError(t, json.Unmarshal(text, &s))
		return s
	}
	s := read()
	for key, want := range map[string]any{
		"containerd": "/run/c.sock", "containerd-namespace": "moby", "storage-driver": "overlayfs", "log-level": "warn",
		"bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false, "userland-proxy": false, "live-restore": true,
		"exec-opts": []any{"native.cgroupdriver=cgroupfs"}, "cgroup-parent": d.config.Limits.Cgroup,
		"data-root": filepath.Join(d.config.Root, "docker"),
	} {
		require.Equal(t, want, s[key], key)
	}
	require.Equal(t, true, s["features"].(map[string]any)["containerd-snapshotter"])
	require.NotContains(t, s, "hosts") // nobody but berthd
	init := filepath.Join(d.config.Runtime.Path, "docker-init")
	require.NotEqual(t, init, s["init-path"])
	require.NoError(t, os.WriteFile(init, nil, 0o755))
	require.Equal(t, init, read()["init-path"])
}

// TestMissing has a managed daemon without its program.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", "")
	d, _ := made(t, func(*config.Config) {})
	d.Start(t.Context())
	err := d.Wait(t.Context())
	require.ErrorContains(t, err, "find dockerd: it is neither in "+d.config.Runtime.Path+" (runtime.path) nor on the PATH")
	require.True(t, errdefs.IsUnavailable(err))
	require.Zero(t, d.PID())
}

// TestLater has the host's dockerd be started after berthd.
func TestLater(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	d, at := made(t, func(c *config.Config) { c.Docker.Managed, c.Docker.Address = false, socket })
	require.Equal(t, socket, d.Socket())
	d.Start(t.Context())
	require.ErrorContains(t, d.Wait(t.Context()), "use dockerd at "+socket)
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"Version":"29.8.1","Driver":"overlayfs","DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]],"CgroupDriver":"cgroupfs",
			"Containerd":{"Address":%q,"Namespaces":{"Containers":"moby"}}}`, at.Address)
	})}
	defer s.Close()
	go func() { _ = s.Serve(l) }()
	require.Eventually(t, func() bool { return d.Wait(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
}
