package doctor

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
)

func TestDocker(t *testing.T) {
	t.Setenv("PATH", "")
	installed := t.TempDir()
	for _, name := range []string{"dockerd", "docker-init"} {
		if err := os.WriteFile(filepath.Join(installed, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l, socket := listen(t)
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"Version":"29.8.1","Driver":"overlay2"}`)
	})}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	for _, tc := range []struct {
		name   string
		change func(*config.Config)
		berthd *api.Version
		status Status
		detail string
	}{
		{"not installed", func(c *config.Config) { c.Runtime.Path = "/nonexistent" }, nil, Warn, "jobs run without docker: find dockerd"},
		{"without berthd", func(*config.Config) {}, nil, OK, "started with berthd"},
		{"with berthd", func(*config.Config) {}, new(api.Version), Fail, "no such file"},
		{"host's, absent", func(c *config.Config) { c.Docker.Managed, c.Docker.Address = false, "/nonexistent/s" }, nil, Fail, "use dockerd at /nonexistent/s: "},
		{"host's, other store", func(c *config.Config) { c.Docker.Managed, c.Docker.Address = false, socket }, nil, Fail, "it keeps images in its own store (overlay2)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Default()
			c.State, c.Runtime.Path = t.TempDir(), installed
			tc.change(c)
			n := &node{Options: Options{Timeout: time.Minute}, config: c, berthd: tc.berthd}
			wants(t, n.docker(t.Context())[0], tc.status, tc.detail)
			c.Docker.Enabled = false
			if checks := n.docker(t.Context()); checks != nil {
				t.Errorf("jobs have none: %+v", checks)
			}
		})
	}
}
