package host_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker/host"
)

// daemon answers as a dockerd would, and does nothing.
type daemon struct{ version, info string }

func (d daemon) listen(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "OK") })
	mux.HandleFunc("/{v}/version", func(w http.ResponseWriter, _ *http.Request) {
		if d.version == "" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"message":"client version 1.44 is too new. Maximum supported API version is 1.41"}`)
			return
		}
		fmt.Fprintf(w, `{"Version":%q}`, d.version)
	})
	mux.HandleFunc("/info", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, d.info) })
	s := &http.Server{Handler: mux}
	t.Cleanup(func() { s.Close() })
	go func() { _ = s.Serve(l) }()
	return socket
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	address, link := filepath.Join(dir, "containerd.sock"), filepath.Join(dir, "link.sock")
	require.NoError(t, os.WriteFile(address, nil, 0o600))
	require.NoError(t, os.Symlink(address, link))
	at := api.Containerd{Address: address, Namespace: "moby", Snapshotter: "overlayfs"}
	const format = `{"Driver":%q,"DriverStatus":[["driver-type",%q]],"CgroupDriver":%q,"Containerd":{"Address":%q,"Namespaces":{"Containers":%q}}}`
	const store = "io.containerd.snapshotter.v1"
	good := fmt.Sprintf(format, "overlayfs", store, "cgroupfs", address, "moby")
	for name, c := range map[string]struct {
		d    daemon
		want string
	}{
		"good":             {daemon{"29.8.1", good}, ""},
		"by a link":        {daemon{"30.0.0", fmt.Sprintf(format, "overlayfs", store, "cgroupfs", link, "moby")}, ""},
		"from a checkout":  {daemon{"dev", good}, ""},
		"old API":          {daemon{"", ""}, "client version 1.44 is too new. Maximum supported API version is 1.41: install Docker Engine 29 or newer, or set docker.managed = true"},
		"old":              {daemon{"28.5.2", good}, "it is version 28.5.2: install Docker Engine 29 or newer"},
		"own image store":  {daemon{"29.8.1", fmt.Sprintf(format, "overlay2", "x", "cgroupfs", address, "moby")}, `it keeps images in its own store (overlay2), where jobs do not find them: set "features": {"containerd-snapshotter": true} in /etc/docker/daemon.json`},
		"own containerd":   {daemon{"29.8.1", `{"Driver":"overlayfs","DriverStatus":[["driver-type","` + store + `"]]}`}, "it works on another containerd (one of its own) than jobs (" + address + "): name its socket in runtime.address"},
		"other containerd": {daemon{"29.8.1", fmt.Sprintf(format, "overlayfs", store, "cgroupfs", "/run/containerd/other.sock", "moby")}, "it works on another containerd (/run/containerd/other.sock)"},
		"other namespace":  {daemon{"29.8.1", fmt.Sprintf(format, "overlayfs", store, "cgroupfs", address, "docker")}, `it works in namespace "docker" of containerd, and jobs in "moby": set "containerd-namespace": "moby"`},
		"other snapshots":  {daemon{"29.8.1", fmt.Sprintf(format, "native", store, "cgroupfs", address, "moby")}, "it uses the snapshotter native, and jobs overlayfs"},
		"systemd":          {daemon{"29.8.1", fmt.Sprintf(format, "overlayfs", store, "systemd", address, "moby")}, `its cgroup driver is systemd, which cannot put containers into a job's cgroup: set "exec-opts": ["native.cgroupdriver=cgroupfs"]`},
	} {
		t.Run(name, func(t *testing.T) {
			socket := c.d.listen(t)
			version, err := host.Check(t.Context(), socket, at)
			if c.want == "" {
				require.NoError(t, err)
				require.Equal(t, c.d.version, version)
				return
			}
			require.ErrorContains(t, err, "use dockerd at "+socket+": ")
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "d.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	_, err = host.Check(t.Context(), stale, api.Containerd{})
	require.ErrorContains(t, err, "the socket is left over and nobody listens: start dockerd")
	_, err = host.Check(t.Context(), filepath.Join(dir, "none.sock"), api.Containerd{})
	require.ErrorContains(t, err, "start it, name its socket in docker.address, or set docker.managed = true")
	require.True(t, errdefs.IsUnavailable(err), err)
}
