package builds_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/buildkit/builds"
)

// A node serves many jobs one after another, and what one had goes with it.
func TestManyJobs(t *testing.T) {
	f := newFixture(t)
	f.job("first", "p0").close()
	before := runtime.NumGoroutine()
	const jobs = 30
	for n := range jobs {
		e, err := f.service.Serve(nil, builds.Job{Key: fmt.Sprint(n), Namespace: fmt.Sprintf("p%d", n%3)})
		f.must(err)
		f.must(e.Close(t.Context()))
		f.must(e.Close(t.Context()))
	}
	// BuildKit's history has one that looks for its database from time to time, and ends then.
	f.waitFor("goroutines to end", func() bool { return runtime.NumGoroutine() < before+jobs+5 })
	if left := f.mounts(); len(left) > 0 {
		t.Errorf("left mounts %v", left)
	}
}

func TestServeRefuses(t *testing.T) {
	f := newFixture(t)
	for what, j := range map[string]builds.Job{
		"no key":      {Namespace: "p1"},
		"slash":       {Key: "a", Namespace: "p1/x"},
		"colon":       {Key: "a", Namespace: "p1:x"},
		"dots":        {Key: "a", Namespace: ".."},
		"empty":       {Key: "a"},
		"entitlement": {Key: "a", Namespace: "p1", Entitlements: []string{"everything"}},
	} {
		if _, err := f.service.Serve(nil, j); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.job("once", "p1")
	if _, err := f.service.Serve(nil, builds.Job{Key: "once", Namespace: "p1"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	if err := f.service.Close(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("close with a job: %v", err)
	}
}

// The builds of many jobs at once, of one namespace.
func TestAtOnce(t *testing.T) {
	f := newFixture(t)
	const jobs = 5
	results := make(chan error, jobs)
	for n := range jobs {
		j := f.job(fmt.Sprint(n), "p1")
		go func() {
			log, err := j.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c,sharing=locked echo x >> /c/n; [ $(wc -l < /c/n) -gt 0 ]\nRUN echo done\n"})
			if err == nil && !strings.Contains(log, "done") && log != "" {
				err = fmt.Errorf("log %q", log)
			}
			results <- err
		}()
	}
	for range jobs {
		f.check(<-results)
	}
}

// A build of a step that is there already, from the request to its image: what BuildKit, the endpoint and the session take.
func BenchmarkCachedBuild(b *testing.B) {
	f := newFixture(b)
	j := f.job("job", "p1")
	r := request{dockerfile: "FROM " + f.busybox() + "\nRUN echo made > /f\n", attrs: map[string]string{"image-resolve-mode": "default"}}
	if _, err := j.build(r); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := j.build(r); err != nil {
			b.Fatal(err)
		}
	}
}

// One step that runs.
func BenchmarkBuild(b *testing.B) {
	f := newFixture(b)
	j := f.job("job", "p1")
	n := 0
	for b.Loop() {
		n++
		if _, err := j.build(request{dockerfile: fmt.Sprintf("FROM %s\nRUN echo %d > /f\n", f.busybox(), n)}); err != nil {
			b.Fatal(err)
		}
	}
}

// What an endpoint costs a job that does not build.
func BenchmarkServe(b *testing.B) {
	f := newFixture(b)
	f.job("other", "p1")
	n := 0
	for b.Loop() {
		n++
		e, err := f.service.Serve(nil, builds.Job{Key: fmt.Sprint(n), Namespace: "p1"})
		f.must(err)
		f.must(e.Close(context.WithoutCancel(b.Context())))
	}
}
