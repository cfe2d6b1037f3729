package doctor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
)

// find is the check with a name; there has to be one.
func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, checks)
	return Check{}
}

// wants compares a check by status and part of its text.
func wants(t *testing.T, c Check, status Status, detail string) {
	t.Helper()
	if c.Status != status || !strings.Contains(c.Detail, detail) {
		t.Errorf("got %s %q, want %s %q", c.Status, c.Detail, status, detail)
	}
	if (c.Status == OK) != (c.Remedy == "") {
		t.Errorf("%s %q has the remedy %q", c.Status, c.Detail, c.Remedy)
	}
}

// TestThisHost runs all checks as an operator does, before berthd is started.
func TestThisHost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to try mounts and networks")
	}
	programs := os.Getenv("BERTH_RUNTIME")
	if programs == "" {
		programs = "../bin/runtime"
	}
	programs, err := filepath.Abs(programs)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "berthd.toml")
	text := fmt.Sprintf("root = %q\nstate = %q\n[runtime]\npath = %q\n", filepath.Join(dir, "root"), filepath.Join(dir, "state"), programs)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	checks := Run(t.Context(), Options{Config: file, RunnerConfig: filepath.Join(dir, "config.toml")})
	for _, c := range checks {
		t.Logf("%s %s: %s", c.Status, c.Name, c.Detail)
		if (c.Status == OK) != (c.Remedy == "") {
			t.Errorf("%s: %s with the remedy %q", c.Name, c.Status, c.Remedy)
		}
		if c.Status == Fail && c.Name != "berthd" {
			t.Errorf("%s: %s", c.Name, c.Detail)
		}
	}
	wants(t, find(t, checks, "berthd"), Fail, "not running: there is no socket")
	wants(t, find(t, checks, "overlayfs"), OK, "works in "+dir)
	wants(t, find(t, checks, "job networks"), OK, "masquerade")
	wants(t, find(t, checks, "config.toml"), Warn, "there is no")
	if left, err := filepath.Glob(filepath.Join(dir, ".berth-doctor-*")); err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "berthd.toml")
	if err := os.WriteFile(file, []byte("rot = 1\nsocket = 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &node{Options: Options{Config: file}}
	c := n.configuration(t.Context())[0]
	wants(t, c, Fail, file+`:1: rot: unknown key; did you mean "root"?`)
	wants(t, c, Fail, file+":2: socket: expected a string, got 2")
	if n.config == nil || n.Socket != "/run/berth/berthd.sock" {
		t.Errorf("nothing to go on with: %+v", n)
	}
}

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

// stale is a socket that nobody listens at.
func stale(t *testing.T) string {
	l, path := listen(t)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	return path
}

func TestDaemon(t *testing.T) {
	serve := func(h http.HandlerFunc) string {
		l, path := listen(t)
		s := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
		t.Cleanup(func() { _ = s.Close() })
		go func() { _ = s.Serve(l) }()
		return path
	}
	good := serve(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Version{Berthd: "1.2", Containerd: "v2.4.2", Root: "/var/lib/berth"})
	})
	_, silent := listen(t)
	for _, tc := range []struct {
		name, socket, version string
		status                Status
		detail                string
	}{
		{"good", good, "1.2", OK, "version 1.2, containerd v2.4.2"},
		{"another version", good, "1.3", Warn, "berth is version 1.3, berthd 1.2"},
		{"absent", "/nonexistent/s", "", Fail, "there is no socket /nonexistent/s"},
		{"stale", stale(t), "", Fail, "nobody listens"},
		{"silent", silent, "", Fail, "no answer from " + silent},
		{"error", serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }), "", Fail, "500"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &node{Options: Options{Socket: tc.socket, Version: tc.version, Timeout: 200 * time.Millisecond}}
			checks := n.daemon(t.Context())
			if len(checks) != 1 {
				t.Fatalf("%+v", checks)
			}
			wants(t, checks[0], tc.status, tc.detail)
			if (n.berthd != nil) != (tc.status != Fail) {
				t.Errorf("berthd: %+v", n.berthd)
			}
		})
	}
}

func TestContainerd(t *testing.T) {
	l, good := listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{Handler: http.NotFoundHandler()})
		}
	}()
	http1, wrong := listen(t)
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(http1) }()
	_, silent := listen(t)
	for _, tc := range []struct {
		name, address string
		berthd        *api.Version
		managed       bool
		status        Status
		detail        string
	}{
		{"good", good, nil, false, OK, "answers at"},
		{"old", good, &api.Version{Containerd: "v1.7.2"}, false, Fail, "is version v1.7.2"},
		{"absent", "/nonexistent/s", nil, false, Fail, "no such file"},
		{"stale", stale(t), nil, false, Fail, "connection refused"},
		{"silent", silent, nil, false, Fail, "no answer from"},
		{"not gRPC", wrong, nil, false, Fail, "does not speak gRPC"},
		{"managed, with berthd", "", &api.Version{Containerd: "v2.4.2"}, true, Fail, "does not run"},
		{"managed, without berthd", "", nil, true, OK, "started with berthd"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Default()
			c.State, c.Runtime.Managed, c.Runtime.Address = t.TempDir(), tc.managed, tc.address
			n := &node{Options: Options{Timeout: 200 * time.Millisecond}, config: c, berthd: tc.berthd}
			wants(t, n.containerd(t.Context())[0], tc.status, tc.detail)
		})
	}
}

// TestOverlayRefused stacks an overlay on an overlay, which the kernel does
// not do.
func TestOverlayRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	if err := tryOverlay(merged); err == nil || !strings.Contains(err.Error(), "mount: ") {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(merged); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestReport(t *testing.T) {
	checks := []Check{ok("a", "fine"), warn("name", "Do this.", "line 1\nline 2"), fail("b", "Do that.", "bad")}
	var b bytes.Buffer
	if err := Table(&b, checks); err != nil {
		t.Fatal(err)
	}
	want := `ok    a     fine
warn  name  line 1
            line 2
            -> Do this.
fail  b     bad
            -> Do that.

1 ok, 1 to look at, 1 to mend
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	if !Failed(checks) || Failed(checks[:2]) {
		t.Error("Failed is wrong")
	}
	b.Reset()
	if err := JSON(&b, checks); err != nil {
		t.Fatal(err)
	}
	var back []Check
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || len(back) != 3 || back[1] != checks[1] {
		t.Errorf("%+v, %v", back, err)
	}
}
