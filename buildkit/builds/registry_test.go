package builds_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"

	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/node/network/namespace"
	testimages "gitlab.com/berth-ci/berth/test/images"
)

// jobRegistry is a registry that only one job reaches.
type jobRegistry struct {
	handler  http.Handler
	requests atomic.Int32
	mu       sync.Mutex
	open     map[net.Conn]bool
}

func (r *jobRegistry) conns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

func newRegistry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

// serveRegistry has a job have a registry on its loopback.
func (j *job) serveRegistry(address string, h http.Handler, start func(*httptest.Server)) *jobRegistry {
	j.Helper()
	r := &jobRegistry{handler: h, open: map[net.Conn]bool{}}
	var l net.Listener
	j.must(namespace.Do(j.network.home(), func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	}))
	s := &httptest.Server{Listener: l, Config: &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.requests.Add(1)
			r.handler.ServeHTTP(w, req)
		}),
		ConnState: func(c net.Conn, s http.ConnState) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if s == http.StateClosed || s == http.StateHijacked {
				delete(r.open, c)
			} else {
				r.open[c] = true
			}
		},
	}}
	start(s)
	j.Cleanup(s.Close)
	return r
}

// put puts an image into a registry that says who it is of. The node has nothing of it.
func (f *fixture) put(h http.Handler, repository, who string) {
	f.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	from, err := name.ParseReference(f.busybox(), name.Insecure)
	f.must(err)
	base, err := remote.Image(from)
	f.must(err)
	img, err := mutate.AppendLayers(base, layerOf(f, "who", who))
	f.must(err)
	to, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://")+"/"+repository, name.Insecure)
	f.must(err)
	f.must(remote.Write(to, img))
}

// layerOf is a layer with one file.
func layerOf(f *fixture, file, text string) v1.Layer {
	f.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	f.must(w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(text))}))
	_, err := io.WriteString(w, text)
	f.must(err)
	f.must(w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	f.must(err)
	return layer
}

// configOf is the digest of an image's configuration.
func (f *fixture) configOf(h http.Handler, repository string) string {
	f.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://")+"/"+repository, name.Insecure)
	f.must(err)
	img, err := remote.Image(ref)
	f.must(err)
	m, err := img.Manifest()
	f.must(err)
	return m.Config.Digest.String()
}

const theirs = "localhost:5000"

// One name is another registry in each job, with the layers and the tags that it has there, whoever asked first.
func TestRegistryOfTheJob(t *testing.T) {
	f := newFixture(t)
	for _, kind := range []struct {
		name  string
		start func(*httptest.Server)
	}{{"plain", (*httptest.Server).Start}, {"TLS", (*httptest.Server).StartTLS}} {
		t.Run(kind.name, func(t *testing.T) {
			var jobs []*job
			var served []*jobRegistry
			who := func(i int) string { return fmt.Sprintf("of %s %d", kind.name, i) }
			for i := range 3 {
				j := f.job(fmt.Sprintf("%s-%d", kind.name, i), []string{"p1", "p1", "p2"}[i])
				h := newRegistry()
				f.put(h, "group/app:1", who(i))
				served = append(served, j.serveRegistry("127.0.0.1:5000", h, kind.start))
				jobs = append(jobs, j)
			}
			for round := range 2 {
				var all sync.WaitGroup
				for i, j := range jobs {
					all.Go(func() {
						before := served[i].requests.Load()
						log, err := j.build(request{
							dockerfile: fmt.Sprintf("FROM %s/group/app:1\nRUN cat /who # %d", theirs, round),
							exports: []client.ExportEntry{{Type: "image", Attrs: map[string]string{
								"name": fmt.Sprintf("%s/group/built:%d", theirs, round), "push": "true", "store": "false"}}},
						})
						if err != nil || !strings.Contains(log, who(i)) {
							t.Errorf("job %d: %q, %v", i, log, err)
						}
						if served[i].requests.Load() == before {
							t.Errorf("job %d: its registry was not asked", i)
						}
						log, err = j.build(request{dockerfile: fmt.Sprintf("FROM %s/group/built:%d\nRUN cat /who; echo %s", theirs, round, j.key)})
						if err != nil || !strings.Contains(log, who(i)) {
							t.Errorf("job %d, from what it pushed: %q, %v", i, log, err)
						}
					})
				}
				all.Wait()
			}
			for i, j := range jobs {
				if served[i].conns() == 0 {
					t.Errorf("job %d: no connection is kept", i)
				}
				j.close()
				f.waitFor("connections to end", func() bool { return served[i].conns() == 0 })
			}
		})
	}
}

// A cache in a registry of the job's own is written and read there.
func TestRegistryCacheOfTheJob(t *testing.T) {
	f := newFixture(t)
	h := newRegistry()
	r := request{dockerfile: "FROM " + f.busybox() + "\nRUN head -c 9 /dev/urandom | base64 >/r; echo ran\nRUN cat /r"}
	to := client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": theirs + "/cache:1", "mode": "max"}}
	first, second := f.job("first", "p1"), f.job("second", "p2")
	first.serveRegistry("127.0.0.1:5000", h, (*httptest.Server).Start)
	if _, err := second.solveCacheTo(r, to); err == nil {
		t.Error("another job's registry has the cache")
	}
	log, err := first.solveCacheTo(r, to)
	if err != nil || !strings.Contains(log, "ran") {
		t.Fatalf("%q, %v", log, err)
	}
	third := f.job("third", "p3")
	served := third.serveRegistry("127.0.0.1:5000", h, (*httptest.Server).Start)
	log, err = third.build(request{dockerfile: r.dockerfile, imports: []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": theirs + "/cache:1"}}}})
	if err != nil || strings.Contains(log, "ran") || served.requests.Load() == 0 {
		t.Errorf("%d requests: %q, %v", served.requests.Load(), log, err)
	}
}

// A registry that keeps one job waiting for a token does not keep others that ask for the same name, and ends with its job.
func TestRegistryThatHangs(t *testing.T) {
	f := newFixture(t)
	slow, other := f.job("slow", "p1"), f.job("other", "p1")
	asked, ended := make(chan struct{}), make(chan struct{})
	var once sync.Once
	tokens := testimages.Tokens()
	served := slow.serveRegistry("127.0.0.1:5000", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/token" {
			tokens.ServeHTTP(w, r)
			return
		}
		once.Do(func() { close(asked) })
		select {
		case <-r.Context().Done():
		case <-ended:
		}
	}), (*httptest.Server).Start)
	defer close(ended)
	registry := testimages.Tokens()
	other.serveRegistry("127.0.0.1:5000", registry, (*httptest.Server).Start)
	password := []session.Attachable{login{host: theirs}}
	r := request{dockerfile: "FROM " + f.busybox() + "\nRUN echo x >/x", attach: password, exports: []client.ExportEntry{{
		Type: "image", Attrs: map[string]string{"name": theirs + "/reader/app:1", "push": "true", "store": "false"}}}}
	if _, err := other.build(r); err != nil {
		t.Fatal(err)
	}
	from := request{dockerfile: "FROM " + theirs + "/reader/app:1\nRUN cat /x", attach: password}
	failed := make(chan error, 1)
	go func() {
		_, err := slow.build(from)
		failed <- err
	}()
	select {
	case <-asked:
	case err := <-failed:
		t.Fatal("no token was asked for:", err)
	}
	log, err := other.build(from)
	if err != nil || !strings.Contains(log, "x") {
		t.Errorf("%q, %v", log, err)
	}
	slow.close()
	if err := <-failed; err == nil {
		t.Error("a build outlives its job")
	}
	f.waitFor("connections to end", func() bool { return served.conns() == 0 })
}

// Who waits for a layer that another job fetches gets it when that job ends before.
func TestRegistryOfOneThatEnds(t *testing.T) {
	h := newRegistry()
	var blobs, configs atomic.Int32
	hold, held := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, l.Addr().String())
	f.put(h, "group/app:1", "of both "+t.TempDir()) // the node has no such layer
	config := "/v2/group/app/blobs/" + f.configOf(h, "group/app:1")
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == config {
			configs.Add(1)
		} else if strings.Contains(r.URL.Path, "/blobs/") && blobs.Add(1) == 1 {
			all := httptest.NewRecorder()
			h.ServeHTTP(all, r)
			w.Header().Set("Content-Length", fmt.Sprint(all.Body.Len()))
			_, _ = w.Write(all.Body.Bytes()[:all.Body.Len()/2])
			_ = http.NewResponseController(w).Flush()
			close(held)
			select {
			case <-r.Context().Done():
			case <-hold:
			}
			return
		}
		r.Header.Del("Range") // that registry knows none without an end
		h.ServeHTTP(w, r)
	})}}
	s.Start()
	defer s.Close()
	defer close(hold)
	first, second := f.job("first", "p1"), f.job("second", "p2")
	r := request{dockerfile: "FROM " + l.Addr().String() + "/group/app:1\nRUN cat /who"}
	failed := make(chan error, 1)
	go func() {
		_, err := first.build(r)
		failed <- err
	}()
	<-held
	type result struct {
		log string
		err error
	}
	got := make(chan result, 1)
	go func() {
		log, err := second.build(r)
		got <- result{log, err}
	}()
	// It has all but the layers now, and waits for those, or is about to.
	f.waitFor("the second to ask for the image", func() bool { return configs.Load() > 1 })
	first.close()
	if got := <-got; got.err != nil || !strings.Contains(got.log, "of both") {
		t.Errorf("%q, %v", got.log, got.err)
	}
	if err := <-failed; err == nil {
		t.Error("the first has it, too")
	}
}

// Without a network there are the registries that the operator named, and no others.
func TestRegistryWithoutNetwork(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(err)
	count := webServer(t, l, "the node's", "")
	j := f.job("job", "p1", func(b *jobSpec) { b.Network = nil })
	if _, err := j.build(request{dockerfile: "FROM " + l.Addr().String() + "/a/b:1"}); err == nil || !isAny(err, "the job has no network") {
		t.Errorf("%v", err)
	}
	if n := count.Load(); n > 0 {
		t.Errorf("%d requests reached the node", n)
	}
	_, err = j.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN true"})
	f.check(err)
}

// That an operator has mirrors for all registries does not name them all.
func TestRegistryMirrors(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(err)
	count := webServer(t, l, "the node's", "")
	dir := t.TempDir()
	f.must(writeHosts(dir, "_default", fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  [host.%[1]q.header]\n    x-of = [\"the operator\"]\n", "http://"+f.registry.Address)))
	f.must(f.service.Close())
	f.service, err = builds.New(t.Context(), f.Engine.Engine, builds.Config{HostsDir: dir})
	f.must(err)
	j := f.job("job", "p1")
	_, repository, _ := strings.Cut(f.busybox(), "/")
	log, err := j.build(request{dockerfile: "FROM nowhere.invalid/" + repository + "\nRUN echo mirrored"})
	if err != nil || !strings.Contains(log, "mirrored") {
		t.Errorf("%q, %v", log, err)
	}
	if _, err := j.build(request{dockerfile: "FROM " + l.Addr().String() + "/a/b:1"}); err == nil {
		t.Error("the node has an image")
	}
	if n := count.Load(); n > 0 {
		t.Errorf("%d requests reached the node", n)
	}
}

// A request that no job makes is not made.
func TestRegistryWithoutJob(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	count := webServer(t, l, "the node's", "")
	dir := t.TempDir()
	if err := nameRegistries(dir, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	hosts, err := builds.RegistryHosts(builds.Config{HostsDir: dir})(l.Addr().String())
	if err != nil || len(hosts) != 1 {
		t.Fatal(hosts, err)
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+l.Addr().String()+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := hosts[0].Client.Do(req)
	if err == nil {
		res.Body.Close()
	}
	if err == nil || !isAny(err, "no job asks") || count.Load() > 0 {
		t.Errorf("%d requests: %v", count.Load(), err)
	}
}

func isAny(err error, texts ...string) bool {
	return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(err.Error(), s) })
}

// What an operator did not name is reached from where the job is: neither the node nor what is on a link of it.
func TestRegistryIsNoWayIn(t *testing.T) {
	redirect, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, redirect.Addr().String())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(err)
	address := l.Addr().String()
	node := webServer(t, l, "the node's", "")
	j := f.job("job", "p1")
	_, port, err := net.SplitHostPort(address)
	f.must(err)
	hosts := []string{address, "localhost:" + port, "169.254.169.254", "169.254.169.254:80", "[::1]:" + port, "[::ffff:127.0.0.1]:" + port, "0.0.0.0:" + port}
	for _, ip := range nodeAddresses(t) {
		hosts = append(hosts, ip+":"+port)
	}
	for _, host := range hosts {
		for way, r := range map[string]request{
			"FROM":   {dockerfile: "FROM " + host + "/a/b:1"},
			"COPY":   {dockerfile: "FROM " + f.busybox() + "\nCOPY --from=" + host + "/a/b:1 / /x"},
			"syntax": {dockerfile: "# syntax=" + host + "/a/b:1\n"},
			"push": {dockerfile: "FROM " + f.busybox(), exports: []client.ExportEntry{{Type: "image",
				Attrs: map[string]string{"name": host + "/a/pushed:1", "push": "true"}}}},
		} {
			_, err := j.build(r)
			if err == nil || !isAny(err, "connection refused", "unreachable", "no IPv6", "invalid reference") {
				t.Errorf("%s %s: %v", way, host, err)
			}
		}
		_, err := j.solveCacheTo(request{dockerfile: "FROM " + f.busybox() + "\nRUN true"},
			client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": host + "/a/b:1"}})
		if err == nil {
			t.Errorf("cache to %s", host)
		}
		_, err = j.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN true",
			imports: []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": host + "/a/b:1"}}}})
		f.check(err) // a cache that cannot be read is none
	}
	if n := node.Load(); n > 0 {
		t.Errorf("%d requests reached the node", n)
	}
	// Sent on by a registry that may be asked.
	s := &httptest.Server{Listener: redirect, Config: &http.Server{Handler: http.RedirectHandler("http://"+address+"/secret", http.StatusFound)}}
	s.Start()
	defer s.Close()
	if _, err := j.build(request{dockerfile: "FROM " + redirect.Addr().String() + "/a/b:1"}); err == nil || !strings.Contains(err.Error(), "is refused: it is") {
		t.Errorf("redirected: %v", err)
	}
	if n := node.Load(); n > 0 {
		t.Errorf("%d requests reached the node", n)
	}
}
