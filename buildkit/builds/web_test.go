package builds_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// webServer answers everything with text, and counts.
func webServer(t testing.TB, l net.Listener, text, etag string) *atomic.Int32 {
	var count atomic.Int32
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		if etag != "" {
			w.Header().Set("ETag", etag)
		}
		if r.Header.Get("If-None-Match") == etag && etag != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprint(w, text)
	})}}
	s.Start()
	t.Cleanup(s.Close)
	return &count
}

// ADD fetches from where the job is, not from where berthd is.
func TestWebIsTheJobs(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(err)
	address := l.Addr().String()
	node := webServer(t, l, "the node's", "")
	j := f.job("job", "p1")
	r := request{dockerfile: "FROM " + f.busybox() + "\nADD http://" + address + "/f /f\nRUN cat /f"}
	log, err := j.build(r)
	if err == nil || strings.Contains(log, "node's") || node.Load() > 0 {
		t.Errorf("%d requests reached the node: %q, %v", node.Load(), log, err)
	}
	for _, ip := range nodeAddresses(t) {
		r.dockerfile = "FROM " + f.busybox() + "\nADD http://" + net.JoinHostPort(ip, "80") + "/f /f"
		if _, err := j.build(r); err == nil || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("%s is there: %v", ip, err)
		}
	}

	inside := f.job("inside", "p1", func(b *jobSpec) {
		b.Network.(*network).inside = func() error {
			l, err := net.Listen("tcp", address)
			if err == nil {
				webServer(t, l, "the job's", "")
			}
			return err
		}
	})
	r.dockerfile = "FROM " + f.busybox() + "\nADD http://" + address + "/f /f\nRUN cat /f"
	log, err = inside.build(r)
	if err != nil || !strings.Contains(log, "the job's") {
		t.Errorf("in the job's network: %q, %v", log, err)
	}
}

func nodeAddresses(t *testing.T) (list []string) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			list = append(list, n.IP.String())
		}
	}
	return append(list, "169.254.169.254")
}

// What a job has under a URL in its own network is not what another gets there, though the tags say that it is the same.
func TestWebOfOthers(t *testing.T) {
	f := newFixture(t)
	serve := func(text string) func(*jobSpec) {
		return func(b *jobSpec) {
			b.Network.(*network).inside = func() error {
				l, err := net.Listen("tcp", "127.0.0.1:8000")
				if err == nil {
					webServer(t, l, text, `"same"`)
				}
				return err
			}
		}
	}
	r := request{dockerfile: "FROM " + f.busybox() + "\nADD http://127.0.0.1:8000/install.sh /f\nRUN cat /f"}
	log, err := f.job("evil", untrusted, serve("evil")).build(r)
	if err != nil || !strings.Contains(log, "evil") {
		t.Fatalf("%q, %v", log, err)
	}
	log, err = f.job("victim", trusted, serve("good")).build(r)
	if err != nil || !strings.Contains(log, "good") || strings.Contains(log, "evil") {
		t.Errorf("%q, %v", log, err)
	}
	// The namespace's own is known by its tag.
	log, err = f.job("next", trusted, serve("not asked for")).build(request{dockerfile: r.dockerfile + " # again", attrs: map[string]string{"build-arg:X": "1"}})
	if err != nil || strings.Contains(log, "not asked for") {
		t.Errorf("%q, %v", log, err)
	}
}

// What a job's client calls a directory is its own word: another's files are neither read nor changed by it.
func TestContextOfOthers(t *testing.T) {
	f := newFixture(t)
	victim, evil := f.job("victim", trusted), f.job("evil", untrusted)
	shared := func(files map[string]string) request {
		return request{dockerfile: "FROM " + f.busybox() + "\nCOPY . /ctx\nRUN ls -l /ctx; cat /ctx/*", files: files, sharedKey: "same"}
	}
	log, err := victim.build(shared(map[string]string{"f": "confidential"}))
	if err != nil || !strings.Contains(log, "confidential") {
		t.Fatalf("%q, %v", log, err)
	}
	// Same name, size and time: the client need not send what the daemon has.
	log, err = evil.build(shared(map[string]string{"f": "what I have."}))
	if err != nil || strings.Contains(log, "confidential") || !strings.Contains(log, "what I have") {
		t.Errorf("%q, %v", log, err)
	}
	log, err = f.job("own", trusted).build(shared(map[string]string{"f": "what we have"}))
	if err != nil || strings.Contains(log, "what we have") {
		t.Errorf("files of the namespace's own are sent again: %q, %v", log, err)
	}
}
