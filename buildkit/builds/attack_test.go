package builds_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"

	"gitlab.com/berth-ci/berth/buildkit/builds"
	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/spec"
)

const (
	trusted   = "p7-protected"
	untrusted = "p7-other"
)

// steal looks for what a trusted job keeps in its cache, and leaves something there.
const steal = "cat /c/* 2>/dev/null; echo tampered > /c/evil; echo done"

// A job of the same project that is not trusted reaches a cache of those that are, by every way to name it.
func TestCacheOfOthers(t *testing.T) {
	f := newFixture(t)
	evil := f.job("evil", untrusted)
	frontend := f.pushFrontend()
	const id = "gomod"
	ids := map[string]string{
		"absolute":  "/" + trusted + "/" + id,
		"plain":     trusted + "/" + id,
		"relative":  "../" + trusted + "/" + id,
		"upwards":   "../../" + trusted + "/" + id,
		"double":    "//" + trusted + "/" + id,
		"through":   untrusted + "/../" + trusted + "/" + id,
		"own first": untrusted + "/" + trusted + "/" + id,
	}
	ways := map[string]func(t *testing.T, id string) (string, error){
		"dockerfile": func(_ *testing.T, id string) (string, error) {
			return evil.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,target=/c,id=" + id + " " + steal + " " + identity.NewID()})
		},
		"namespace argument": func(_ *testing.T, id string) (string, error) {
			return evil.build(request{
				dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,target=/c,id=gomod " + steal + " " + identity.NewID(),
				attrs:      map[string]string{"build-arg:BUILDKIT_CACHE_MOUNT_NS": strings.TrimSuffix(id, "/gomod")},
			})
		},
		"LLB": func(t *testing.T, id string) (string, error) {
			def, err := f.step(id).Marshal(t.Context())
			f.must(err)
			return evil.raw(client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
			})
		},
		"definition": func(t *testing.T, id string) (string, error) {
			def, err := f.step(id).Marshal(t.Context())
			f.must(err)
			return evil.solveDefinition(def)
		},
		"inputs": func(t *testing.T, id string) (string, error) {
			def, err := f.step(id).Marshal(t.Context())
			f.must(err)
			return evil.raw(client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				return c.Solve(ctx, gateway.SolveRequest{
					Frontend: "dockerfile.v0", Evaluate: true,
					FrontendOpt:    map[string]string{"filename": "Dockerfile", "context:base": "input:base"},
					FrontendInputs: map[string]*pb.Definition{"dockerfile": f.dockerfile("FROM base\nRUN true"), "base": def.ToPB()},
				})
			})
		},
		"container": func(_ *testing.T, id string) (string, error) {
			var out buffer
			_, err := evil.raw(client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				return nil, f.container(ctx, c, &out, gateway.Mount{Dest: "/c", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: id}})
			})
			return out.String(), err
		},
		"syntax": func(_ *testing.T, id string) (string, error) {
			return evil.build(request{
				dockerfile: "# syntax=" + frontend + "\n",
				attrs:      map[string]string{"build-arg:IMAGE": f.busybox(), "build-arg:ID": id, "build-arg:SCRIPT": steal},
			})
		},
	}
	for _, held := range []bool{false, true} {
		m, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: cachemount.Key(trusted, id), Job: "victim", Sharing: spec.Shared})
		f.must(err)
		f.must(os.WriteFile(filepath.Join(m.Path(), "f"), []byte("confidential"), 0o644))
		if !held {
			f.must(m.Release(t.Context()))
		}
		for way, try := range ways {
			for kind, id := range ids {
				if way != "dockerfile" && way != "container" && kind != "plain" && kind != "absolute" {
					continue // they come together where ids are read
				}
				t.Run(way+" "+kind, func(t *testing.T) {
					out, err := try(t, id)
					if strings.Contains(out, "confidential") {
						t.Errorf("read the cache of others: %q", out)
					}
					if !strings.Contains(out, "done") {
						t.Errorf("the attack did not run: %q, %v", out, err)
					}
					if left, err := os.ReadDir(m.Path()); err != nil || len(left) != 1 {
						t.Errorf("wrote to the cache of others: %v, %v", left, err)
					}
				})
			}
		}
		f.check(m.Release(t.Context()))
	}
	t.Run("container of a frontend", func(t *testing.T) {
		_, err := evil.build(request{
			dockerfile: "# syntax=" + frontend + "\n",
			attrs: map[string]string{"build-arg:IMAGE": f.busybox(), "build-arg:ID": trusted + "/" + id,
				"build-arg:SCRIPT": steal, "build-arg:CONTAINER": "yes"},
		})
		if err == nil || !strings.Contains(err.Error(), "may not start containers") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("colon", func(t *testing.T) {
		_, err := evil.build(request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,target=/c,id=a:b true"})
		if err == nil || !strings.Contains(err.Error(), "has a colon") {
			t.Errorf("error %v", err)
		}
	})
}

// step is a step with a cache.
func (f *fixture) step(id string) llb.State {
	return llb.Image(f.busybox()).Run(llb.Args([]string{"sh", "-c", steal}), llb.IgnoreCache,
		llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir(id, llb.CacheMountShared))).Root()
}

func (f *fixture) dockerfile(text string) *pb.Definition {
	f.Helper()
	def, err := llb.Scratch().File(llb.Mkfile("Dockerfile", 0o644, []byte(text))).Marshal(f.Context())
	f.must(err)
	return def.ToPB()
}

// raw is a build by a client that is its own frontend.
func (j *job) raw(opt client.SolveOpt, build gateway.BuildFunc) (string, error) {
	j.Helper()
	updates := make(chan *client.SolveStatus)
	var log strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates {
			for _, l := range u.Logs {
				log.Write(l.Data)
			}
		}
	}()
	_, err := j.client.Build(j.Context(), opt, "", build, updates)
	<-done
	return log.String(), err
}

func (j *job) solveDefinition(def *llb.Definition) (string, error) {
	j.Helper()
	updates := make(chan *client.SolveStatus)
	var log strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates {
			for _, l := range u.Logs {
				log.Write(l.Data)
			}
		}
	}()
	_, err := j.client.Solve(j.Context(), def, client.SolveOpt{}, updates)
	<-done
	return log.String(), err
}

type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// container runs the theft in a container beside the steps.
func (f *fixture) container(ctx context.Context, c gateway.Client, out io.WriteCloser, mount gateway.Mount) error {
	def, err := llb.Image(f.busybox()).Marshal(ctx)
	if err != nil {
		return err
	}
	res, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return err
	}
	ctr, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", Ref: res.Ref}, mount}})
	if err != nil {
		return err
	}
	defer func() { _ = ctr.Release(ctx) }()
	p, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"sh", "-c", steal}, Stdout: out})
	if err != nil {
		return err
	}
	return p.Wait()
}

// pushFrontend makes an image of testfrontend, and returns its name.
func (f *fixture) pushFrontend() string {
	f.Helper()
	program := filepath.Join(f.TempDir(), "frontend")
	cmd := exec.Command("go", "build", "-o", program, "./testfrontend")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		f.Fatalf("build frontend: %v\n%s", err, out)
	}
	return f.push("frontend", map[string]string{"/frontend": program}, v1.Config{Entrypoint: []string{"/frontend"}, WorkingDir: "/"})
}

// push makes an image of files, and returns its name.
func (f *fixture) push(repository string, files map[string]string, config v1.Config) string {
	f.Helper()
	dir := f.TempDir()
	for to, from := range files {
		text, err := os.ReadFile(from)
		f.must(err)
		f.must(os.WriteFile(filepath.Join(dir, to), text, 0o755))
	}
	archive := filepath.Join(f.TempDir(), "layer.tar")
	if out, err := exec.Command("tar", "-C", dir, "-cf", archive, ".").CombinedOutput(); err != nil {
		f.Fatalf("tar: %v\n%s", err, out)
	}
	layer, err := tarball.LayerFromFile(archive)
	f.must(err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	f.must(err)
	file, err := img.ConfigFile()
	f.must(err)
	file = file.DeepCopy()
	file.Config, file.OS, file.Architecture = config, "linux", "amd64"
	img, err = mutate.ConfigFile(img, file)
	f.must(err)
	tag, err := name.NewTag(f.registry.Image(repository), name.Insecure)
	f.must(err)
	f.must(remote.Write(tag, img, remote.WithContext(f.Context())))
	return tag.String()
}

// The result of a step of another namespace is not given to a build, though BuildKit's cache keys are the same: not
// when it is kept, nor while it is made.
func TestResultsOfOthers(t *testing.T) {
	f := newFixture(t)
	ours, theirs := f.job("ours", trusted), f.job("theirs", untrusted)
	m, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: cachemount.Key(trusted, "x"), Job: "job", Sharing: spec.Shared})
	f.must(err)
	f.must(os.WriteFile(filepath.Join(m.Path(), "f"), []byte("confidential"), 0o644))
	f.must(m.Release(t.Context()))
	for what, step := range map[string]string{
		"cache": "--mount=type=cache,id=x,target=/c cat /c/f > /out 2>/dev/null || true",
		"hosts": "grep registry /etc/hosts > /out || true",
		"plain": "head -c 16 /dev/urandom | md5sum > /out",
	} {
		r := request{dockerfile: "FROM " + f.busybox() + "\nRUN " + step + "\nRUN echo made; cat /out\n"}
		t.Run(what, func(t *testing.T) {
			bad := r
			bad.attrs = map[string]string{"add-hosts": "registry=192.0.2.66"}
			good := r
			good.attrs = map[string]string{"add-hosts": "registry=192.0.2.1"}
			got, err := theirs.build(bad)
			f.check(err)
			own, err := ours.build(good)
			f.check(err)
			if !strings.Contains(own, "made") || strings.Contains(own, "192.0.2.66") {
				t.Errorf("ours has %q after %q", own, got)
			}
			again, err := theirs.build(bad)
			f.check(err)
			if strings.Contains(again, "made") {
				t.Errorf("own results are not kept: %q", again)
			}
			if strings.Contains(got, "confidential") {
				t.Errorf("theirs has %q", got)
			}
		})
	}
	t.Run("in flight", func(t *testing.T) {
		// Each waits for the other to be there, so that both are made at once.
		step := "--mount=type=cache,id=x,target=/c sleep 1; cat /c/f > /out 2>/dev/null; true"
		r := request{dockerfile: "FROM " + f.busybox() + "\nRUN " + step + "\nRUN echo made; cat /out\n", attrs: map[string]string{"no-cache": ""}}
		type result struct {
			log string
			err error
		}
		first := make(chan result)
		go func() {
			log, err := ours.build(r)
			first <- result{log, err}
		}()
		second, err := theirs.build(r)
		f.check(err)
		one := <-first
		f.check(one.err)
		if !strings.Contains(one.log, "confidential") || strings.Contains(second, "confidential") || !strings.Contains(second, "made") {
			t.Errorf("ours has %q, theirs %q", one.log, second)
		}
	})
}

// Another of the namespace gets what was made there.
func TestResultsOfOwn(t *testing.T) {
	f := newFixture(t)
	one, two := f.job("one", "p1"), f.job("two", "p1")
	r := request{dockerfile: "FROM " + f.busybox() + "\nRUN echo made"}
	log, err := one.build(r)
	f.must(err)
	if !strings.Contains(log, "made") {
		t.Errorf("the first says %q", log)
	}
	one.close()
	log, err = two.build(r)
	f.must(err)
	if strings.Contains(log, "made") {
		t.Error("the second made it again")
	}
}

// What a build may not do by itself.
func TestRefused(t *testing.T) {
	f := newFixture(t)
	j := f.job("job", "p1")
	granted := f.job("granted", "p1", func(j *builds.Job) {
		j.Entitlements = []string{"network.host", "security.insecure"}
	})
	root, err := os.Readlink("/proc/self/ns/net")
	f.must(err)
	from := "FROM " + f.busybox() + "\n"
	var all sync.WaitGroup
	for _, c := range []struct {
		name    string
		request request
		want    string // in the error
	}{
		{"host network", request{dockerfile: from + "RUN --network=host true"}, "network.host is not allowed"},
		{"host network asked for", request{dockerfile: from + "RUN --network=host true", allow: []string{"network.host"}}, "is not granted to this job"},
		{"host network by option", request{dockerfile: from + "RUN true", attrs: map[string]string{"force-network-mode": "host"}}, "network.host is not allowed"},
		{"insecure", request{dockerfile: from + "RUN --security=insecure true"}, "security.insecure is not allowed"},
		{"insecure asked for", request{dockerfile: from + "RUN --security=insecure true", allow: []string{"security.insecure"}}, "is not granted to this job"},
		{"device", request{dockerfile: from + "RUN --device=nvidia.com/gpu=all true", allow: []string{"device"}}, "is not granted to this job"},
		{"git", request{dockerfile: from + "ADD https://git.example.com/a/b.git#main /src"}, "builds do not fetch from git"},
		{"git context", request{dockerfile: from, attrs: map[string]string{"context": "https://git.example.com/a/b.git"}}, "builds do not fetch from git"},
		{"exporter", request{dockerfile: from, exports: []client.ExportEntry{{Type: "gateway"}}}, "no exporter"},
		{"plain registry", request{dockerfile: from, exports: []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": "127.0.0.1:1/a", "push": "true", "registry.insecure": "true"}}}}, "registry.insecure is refused"},
		{"incomplete image", request{dockerfile: from, exports: []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": "a", "unsafe-internal-store-allow-incomplete": "true"}}}}, "is refused"},
	} {
		// All at once: clients wait a while for the status of what is refused before it begins.
		all.Go(func() {
			_, err := j.build(c.request)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v, want %q", c.name, err, c.want)
			}
		})
	}
	t.Run("granted", func(t *testing.T) {
		log, err := granted.build(request{dockerfile: from + "RUN --network=host readlink /proc/self/ns/net", allow: []string{"network.host"}})
		f.check(err)
		if !strings.Contains(log, "net:[") || strings.Contains(log, root) {
			t.Errorf("network.host gives %q; the node's is %q", log, root)
		}
		log, err = granted.build(request{dockerfile: from + "RUN --security=insecure grep CapEff /proc/self/status", allow: []string{"security.insecure"}})
		f.check(err)
		if !strings.Contains(log, "1fffef") {
			t.Errorf("security.insecure gives %q", log)
		}
	})
	t.Run("build operation", func(t *testing.T) {
		op := &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: int64(pb.LLBBuilder)}}}
		_, err := j.rawOps(op)
		if err == nil || !strings.Contains(err.Error(), "a build inside a build") {
			t.Errorf("error %v", err)
		}
	})
	for _, kind := range []string{"s3", "gha", "azblob"} {
		all.Go(func() {
			r := request{dockerfile: from + "RUN true"}
			_, err := j.solveCacheTo(r, client.CacheOptionsEntry{Type: kind, Attrs: map[string]string{"endpoint_url": "http://127.0.0.1:1", "bucket": "b", "region": "r"}})
			if err == nil || !strings.Contains(err.Error(), "unknown cache exporter") {
				t.Errorf("cache in %s: error %v", kind, err)
			}
		})
	}
	all.Wait()
}

// A RUN step has the job's network and nameserver, and is below the job's cgroup, whatever the build asks for.
func TestSurroundings(t *testing.T) {
	f := newFixture(t)
	cgroup := "/berth-test-" + filepath.Base(f.Config.Root) + identity.NewID()[:6]
	f.Cleanup(func() { removeCgroup(f, cgroup) })
	j := f.job("job", "p1", func(j *builds.Job) { j.Cgroup = cgroup })
	root, err := os.Readlink("/proc/self/ns/net")
	f.must(err)
	log, err := j.build(request{
		dockerfile: "FROM " + f.busybox() + "\nRUN cat /proc/self/cgroup; readlink /proc/self/ns/net; cat /etc/resolv.conf\n",
		attrs:      map[string]string{"cgroup-parent": "/elsewhere"},
	})
	f.must(err)
	if strings.Contains(log, "/elsewhere") || !strings.Contains(log, cgroup+"/") {
		t.Errorf("cgroups %q", log)
	}
	if !strings.Contains(log, "net:[") || strings.Contains(log, root) {
		t.Errorf("network %q, and the node's is %s", log, root)
	}
	if !strings.Contains(log, "nameserver 192.0.2.53") {
		t.Errorf("nameservers %q", log)
	}
}

// A build that a client leaves, and those of a job that ends, end with what they run.
func TestEnds(t *testing.T) {
	f := newFixture(t)
	sleep := request{dockerfile: "FROM " + f.busybox() + "\nRUN --mount=type=cache,id=x,target=/c trap '' TERM INT; sleep 1000\n"}
	t.Run("cancel", func(t *testing.T) {
		j := f.job("cancels", "p1")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := j.buildIn(ctx, sleep)
			ended <- err
		}()
		f.waitFor("the RUN step", func() bool { return len(f.tasks()) == 1 })
		began := time.Now()
		cancel()
		if err := <-ended; err == nil {
			t.Error("it ended well")
		}
		f.waitFor("the end of the RUN step", func() bool { return len(f.containers()) == 0 })
		t.Logf("took %v", time.Since(began))
	})
	t.Run("close", func(t *testing.T) {
		j, other := f.job("ends", "p1"), f.job("goes on", "p1")
		results := make(chan error, 2)
		for _, one := range []*job{j, other} {
			r := sleep
			if one == other {
				r.dockerfile = strings.Replace(r.dockerfile, "sleep 1000", "touch /c/ready; while [ -e /c/ready ]; do sleep 0.1; done", 1)
			}
			go func() {
				_, err := one.build(r)
				results <- err
			}()
		}
		f.waitFor("both RUN steps", func() bool { return len(f.tasks()) == 2 })
		began := time.Now()
		j.close()
		t.Logf("took %v", time.Since(began))
		if n := len(f.containers()); n != 1 {
			t.Errorf("%d RUN steps live, want that of the other job", n)
		}
		if err := <-results; err == nil {
			t.Error("the build of the job that ended ended well")
		}
		m, err := f.Mounts().Acquire(t.Context(), cachemount.Request{Key: cachemount.Key("p1", "x"), Job: "job", Sharing: spec.Shared})
		f.must(err)
		f.waitFor("the other", func() bool { return os.Remove(filepath.Join(m.Path(), "ready")) == nil })
		f.must(m.Release(t.Context()))
		if err := <-results; err != nil {
			t.Errorf("the other's build: %v", err)
		}
		if _, err := j.build(sleep); err == nil {
			t.Error("a closed endpoint builds")
		}
	})
}
