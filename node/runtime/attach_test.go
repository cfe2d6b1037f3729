package runtime

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	versions "github.com/containerd/containerd/api/services/version/v1"
	"github.com/sirupsen/logrus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	health_v1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"gitlab.com/berth-ci/berth/node/config"
)

// host is a containerd that tells of itself and does nothing.
type host struct {
	versions.UnimplementedVersionServer
	introspection.UnimplementedIntrospectionServer
	version string
	broken  bool // its snapshotter is
}

func (h host) Version(context.Context, *emptypb.Empty) (*versions.VersionResponse, error) {
	return &versions.VersionResponse{Version: h.version}, nil
}

func (h host) Plugins(context.Context, *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	overlay := &introspection.Plugin{Type: "io.containerd.snapshotter.v1", ID: "overlayfs"}
	if h.broken {
		overlay.InitErr = &status.Status{Code: 9, Message: "no overlay on zfs"}
	}
	return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{
		overlay, {Type: "io.containerd.snapshotter.v1", ID: "native"},
	}}, nil
}

// listen serves as h would.
func (h host) listen(t *testing.T) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	t.Cleanup(s.Stop)
	versions.RegisterVersionServer(s, h)
	introspection.RegisterIntrospectionServer(s, h)
	health_v1.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(l) }()
	return address
}

func TestAttach(t *testing.T) {
	stale := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, address, snapshotter, want string }{
		{"good", host{version: "v2.1.4"}.listen(t), "overlayfs", ""},
		{"a distribution's", host{version: "2.0.0~rc1+ds1"}.listen(t), "overlayfs", ""},
		{"built from a checkout", host{version: "unknown"}.listen(t), "overlayfs", ""},
		{"old", host{version: "1.7.24"}.listen(t), "overlayfs", "it is version 1.7.24: install 2.0 or newer, or set runtime.managed = true"},
		{"broken snapshotter", host{version: "2.4.2", broken: true}.listen(t), "overlayfs", "its snapshotter overlayfs does not work here: "},
		{"unknown snapshotter", host{version: "2.4.2"}.listen(t), "stargz", `it has no snapshotter "stargz" but overlayfs, native: change runtime.snapshotter`},
		{"absent", "/nonexistent/c.sock", "overlayfs", "no such file or directory: start it, name its socket in runtime.address, or"},
		{"stale", stale, "overlayfs", "connection refused: the socket is left over"},
		{"no socket", file, "overlayfs", "connection refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Default()
			c.Runtime.Managed, c.Runtime.Address, c.Runtime.Snapshotter = false, tc.address, tc.snapshotter
			r := New(c, 0, logrus.NewEntry(logrus.New()))
			err := r.Start(t.Context())
			if tc.want == "" {
				if err != nil || r.PID() != 0 || r.Containerd().Address != tc.address {
					t.Errorf("got %v", err)
				}
				return
			}
			if want := "use containerd at " + tc.address + ": "; err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s… %s", err, want, tc.want)
			}
			if err := r.Stop(t.Context()); err != nil {
				t.Errorf("stop of what is the host's: %v", err)
			}
		})
	}
}
