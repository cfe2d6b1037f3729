package builds_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/test/containerdtest"
)

// program finds one of the runtime's.
func program(t *testing.T, name string) string {
	dir, err := containerdtest.Programs()
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s: run `make runtime`", name)
	}
	return path
}

// run runs a client as a job would.
func (j *job) run(t *testing.T, dir string, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	home := t.TempDir()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "DOCKER_CONFIG=" + home, "BUILDX_CONFIG=" + home + "/buildx"}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (j *job) context(files map[string]string) string {
	j.Helper()
	dir := j.TempDir()
	for name, text := range files {
		j.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return dir
}

func (j *job) cached(id, want string) {
	j.Helper()
	m, err := j.Mounts().Acquire(j.Context(), cachemount.Request{Key: cachemount.Key("p1", id), Job: "job", Sharing: spec.Shared})
	j.must(err)
	if text, err := os.ReadFile(filepath.Join(m.Path(), "f")); err != nil || strings.TrimSpace(string(text)) != want {
		j.Errorf("the cache has %q, %v", text, err)
	}
	j.must(m.Release(j.Context()))
}

func TestBuildctl(t *testing.T) {
	buildctl := program(t, "buildctl")
	f := newFixture(t)
	j := f.job("job", "p1")
	env := []string{"BUILDKIT_HOST=" + j.address}
	dir := j.context(map[string]string{"Dockerfile": "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c echo by-buildctl > /c/f && cp /c/f /f\n"})
	out, err := j.run(t, dir, env, buildctl, "build", "--frontend=dockerfile.v0", "--local=context=.", "--local=dockerfile=.",
		"--output=type=image,name=docker.io/library/b:1,unpack=true", "--metadata-file=meta.json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	j.cached("x", "by-buildctl")
	c, ctx := f.shared()
	if _, err := c.GetImage(ctx, "docker.io/library/b:1"); err != nil {
		t.Error(err)
	}
	out, err = j.run(t, dir, env, buildctl, "build", "--frontend=dockerfile.v0", "--local=context=.", "--local=dockerfile=.", "--output=type=local,dest=out")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "out/f")); err != nil || string(text) != "by-buildctl\n" {
		t.Errorf("local output %q, %v", text, err)
	}
	for _, args := range [][]string{{"du"}, {"prune", "--all"}, {"debug", "workers"}, {"debug", "info"}} {
		if out, err := j.run(t, dir, env, append([]string{buildctl}, args...)...); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	j.cached("x", "by-buildctl")
}

func TestBuildxRemote(t *testing.T) {
	buildx := program(t, "docker-buildx")
	f := newFixture(t)
	j := f.job("job", "p1")
	home := t.TempDir()
	env := []string{"BUILDX_CONFIG=" + home}
	dir := j.context(map[string]string{
		"Dockerfile":      "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c --mount=type=secret,id=s cat /run/secrets/s > /c/f && cp /c/f /f\n",
		"secret":          "by-buildx",
		"docker-bake.hcl": "target \"default\" {\n output = [\"type=local,dest=baked\"]\n secret = [\"id=s,src=secret\"]\n}\n",
	})
	for _, args := range [][]string{
		{"create", "--name", "berth", "--driver", "remote", j.address},
		{"inspect", "berth"},
		{"build", "--builder", "berth", "--secret", "id=s,src=secret", "--output", "type=image,name=docker.io/library/b:1", "--metadata-file", "meta.json", "."},
		{"build", "--builder", "berth", "--secret", "id=s,src=secret", "--output", "type=tar,dest=out.tar", "--provenance=mode=max", "."},
		{"bake", "--builder", "berth", "--allow", "fs=*"},
		{"du", "--builder", "berth"},
		{"prune", "--builder", "berth", "--all", "--force"},
		{"history", "ls", "--builder", "berth"},
		{"rm", "berth"},
	} {
		if out, err := j.run(t, dir, env, append([]string{buildx}, args...)...); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	j.cached("x", "by-buildx")
	if text, err := os.ReadFile(filepath.Join(dir, "baked/f")); err != nil || !strings.Contains(string(text), "by-buildx") {
		t.Errorf("baked %q, %v", text, err)
	}
	meta, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	f.check(err)
	if !strings.Contains(string(meta), "containerimage.digest") {
		t.Errorf("metadata %s", meta)
	}
}

// sniffing hands connections of HTTP/2 to an endpoint.
type sniffing struct {
	net.Listener
	endpoint *builds.Endpoint
}

func (l sniffing) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ahead := bufio.NewReader(c)
		first, err := ahead.Peek(4)
		if err != nil {
			return nil, err
		}
		c = sniffed{c, ahead}
		if string(first) != "PRI " {
			return c, nil
		}
		l.endpoint.ServeConn(c)
	}
}

// sniffed is a connection of which the beginning was looked at.
type sniffed struct {
	net.Conn
	ahead io.Reader
}

func (s sniffed) Read(b []byte) (int, error) { return s.ahead.Read(b) }

// docker is a server of docker's API that has builds alone, and what its clients ask for before.
func (j *job) docker() (address string) {
	j.Helper()
	socket := filepath.Join(j.Config.Root, fmt.Sprintf("d%d.sock", j.count.Add(1)))
	l, err := net.Listen("unix", socket)
	j.must(err)
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.48")
		w.Header().Set("Builder-Version", "2")
		w.Header().Set("Ostype", "linux")
	})
	handler := j.endpoint.Handler()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/version"):
			_ = json.NewEncoder(w).Encode(map[string]any{"Version": "29.8.1", "ApiVersion": "1.48"})
		case strings.HasSuffix(r.URL.Path, "/info"):
			_ = json.NewEncoder(w).Encode(map[string]any{"DriverStatus": [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}})
		default:
			handler.ServeHTTP(w, r)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(sniffing{l, j.endpoint}) }()
	j.Cleanup(func() { s.Close() })
	return "unix://" + socket
}

// `docker build` by docker's own API, which the docker endpoint hands on.
func TestDocker(t *testing.T) {
	buildx := program(t, "docker-buildx")
	f := newFixture(t)
	j := f.job("job", "p1")
	env := []string{"DOCKER_HOST=" + j.docker()}
	dir := j.context(map[string]string{"Dockerfile": "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c echo by-docker > /c/f\n"})
	out, err := j.run(t, dir, env, buildx, "build", "-t", "app:docker", ".")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	j.cached("x", "by-docker")
	c, ctx := f.shared()
	if _, err := c.GetImage(ctx, "docker.io/library/app:docker"); err != nil {
		t.Error(err)
	}
}

// What clients without BuildKit ask for.
func TestLegacyBuild(t *testing.T) {
	f := newFixture(t)
	j := f.job("job", "p1")
	socket := strings.TrimPrefix(j.docker(), "unix://")
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	post := func(query, dockerfile string) (int, string) {
		dir := j.context(map[string]string{"Dockerfile": dockerfile})
		tar := exec.Command("tar", "-C", dir, "-cf", "-", ".")
		out, err := tar.StdoutPipe()
		f.must(err)
		f.must(tar.Start())
		resp, err := c.Post("http://docker/v1.48/build?"+query, "application/x-tar", out)
		f.must(err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		f.must(err)
		_ = tar.Wait()
		return resp.StatusCode, string(text)
	}
	code, text := post(`t=app:legacy&buildargs={"A":"by-legacy"}`, "FROM "+f.busybox()+"\nARG A\nRUN --mount=type=cache,id=x,target=/c echo $A > /c/f\n")
	if code != http.StatusOK || !strings.Contains(text, "Successfully tagged app:legacy") {
		t.Errorf("%d: %s", code, text)
	}
	j.cached("x", "by-legacy")
	if code, text = post("", "FROM "+f.busybox()+"\nRUN exit 7\n"); code != http.StatusOK || !strings.Contains(text, "exit code: 7") {
		t.Errorf("%d: %s", code, text)
	}
	if code, text = post("networkmode=host", "FROM "+f.busybox()+"\nRUN true\n"); !strings.Contains(text, "network.host is not allowed") {
		t.Errorf("%d: %s", code, text)
	}
	if code, text = post("networkmode=container:victim", "FROM "+f.busybox()); code != http.StatusBadRequest {
		t.Errorf("%d: %s", code, text)
	}
	if code, text = post("remote=http://127.0.0.1:1/", ""); !strings.Contains(text, "refused") {
		t.Errorf("%d: %s", code, text)
	}
}
