package image

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"

	"gitlab.com/berth-ci/berth/test/containerdtest"
)

var (
	address string // of containerd
	missing string // why there is none
)

// childEnv holds the work of a test binary that stands in for one of many `berth prepare`.
const childEnv = "BERTH_TEST_PULL"

type childWork struct{ Address, Namespace, LockDir, Ref string }

func TestMain(m *testing.M) {
	if work := os.Getenv(childEnv); work != "" {
		if err := child(work); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if missing = containerdtest.Missing(); missing != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "berth-image-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var stop func()
	if address, stop, err = containerdtest.Start(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stop()
	return m.Run()
}

func child(text string) error {
	var work childWork
	if err := json.Unmarshal([]byte(text), &work); err != nil {
		return err
	}
	c, err := client.New(work.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(context.Background(), work.Namespace)
	p := &Puller{Client: c, LockDir: work.LockDir}
	_, err = p.Pull(ctx, Request{Ref: work.Ref, Policies: []Policy{IfNotPresent}, Log: os.Stdout})
	return err
}

// fixture is a puller with a containerd namespace, a registry and a job log of its own.
type fixture struct {
	*testing.T
	ctx      context.Context
	registry *testRegistry
	puller   *Puller
	log      syncBuffer
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &fixture{
		T:        t,
		ctx:      namespaces.WithNamespace(t.Context(), strings.ToLower(regexp.MustCompile(`\W`).ReplaceAllString(t.Name(), "-"))),
		registry: newTestRegistry(t, httptest.NewServer),
		puller:   &Puller{Client: c, LockDir: filepath.Join(t.TempDir(), "locks"), HostsDir: t.TempDir()},
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// pull pulls an image of the fixture's registry, or of registry.test, which is what hosts.toml makes of it.
func (f *fixture) pull(ref string, with Request) (client.Image, error) {
	if !strings.HasPrefix(ref, "registry.test/") {
		ref = f.registry.host + "/" + ref
	}
	with.Ref, with.Log = ref, &f.log
	return f.puller.Pull(f.ctx, with)
}

func (f *fixture) mustPull(ref string, with Request) client.Image {
	f.Helper()
	img, err := f.pull(ref, with)
	if err != nil {
		f.Fatalf("pull %s: %v\n%s", ref, err, f.log.String())
	}
	if unpacked, err := img.IsUnpacked(f.ctx, f.puller.snapshotter()); err != nil || !unpacked {
		f.Errorf("%s is not unpacked: %v", ref, err)
	}
	return img
}

// fails checks the class of an error and that it says all parts.
func (f *fixture) fails(err error, class error, parts ...string) {
	f.Helper()
	if !errors.Is(err, class) {
		f.Errorf("error is %v, want one that is %q", err, class)
	}
	f.says(fmt.Sprint(err), parts...)
}

func (f *fixture) says(text string, parts ...string) {
	f.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			f.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

// nothingLeft checks that no lock and no lease is there.
func (f *fixture) nothingLeft() {
	f.Helper()
	if locks, _ := os.ReadDir(f.puller.LockDir); len(locks) > 0 {
		f.Errorf("locks are left: %v", locks)
	}
	ctx := namespaces.WithNamespace(context.Background(), namespace(f.ctx))
	if list, err := f.puller.Client.LeasesService().List(ctx); err != nil || len(list) > 0 {
		f.Errorf("leases are left: %v, %v", list, err)
	}
}

func namespace(ctx context.Context) string {
	ns, _ := namespaces.Namespace(ctx)
	return ns
}

func (f *fixture) hosts(host, toml string) {
	f.Helper()
	dir := filepath.Join(f.puller.HostsDir, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600); err != nil {
		f.Fatal(err)
	}
}

func TestPull(t *testing.T) {
	f := newFixture(t)
	digest := f.registry.put(t, "group/image:1", randomImage(t, runtime.GOARCH))
	img := f.mustPull("group/image:1", Request{})
	if got := img.Target().Digest.String(); got != digest {
		t.Errorf("digest is %s, want %s", got, digest)
	}
	if n := f.registry.count("GET", "/blobs/"); n != 4 {
		t.Errorf("%d blobs were fetched, want config and 3 layers", n)
	}
	name := f.registry.host + "/group/image"
	f.says(f.log.String(),
		"Using effective pull policy of [always] for container image "+name+":1\n",
		"Pulling docker image "+name+":1 ...\n",
		"(3 layers, 0 of them already on the node)\n",
		"Using docker image "+digest+" for "+name+":1 with digest "+name+"@"+digest+" ...\n")
	f.nothingLeft()

	f.mustPull("group/image:1", Request{})
	f.says(f.log.String(), "Image is up to date")
	if n := f.registry.count("GET"); n != 5 {
		t.Errorf("%d downloads after the second pull, want those of the first", n)
	}
}

func TestDigest(t *testing.T) {
	f := newFixture(t)
	digest := f.registry.put(t, "image:1", randomImage(t, ""))
	f.registry.put(t, "image:1", randomImage(t, ""))
	if got := f.mustPull("image:1@"+digest, Request{}).Target().Digest.String(); got != digest {
		t.Errorf("digest is %s, want %s", got, digest)
	}
	_, err := f.pull("image@sha256:"+strings.Repeat("0", 64), Request{})
	f.fails(err, errdefs.ErrNotFound)
}

func TestUnknownImage(t *testing.T) {
	f := newFixture(t)
	_, err := f.pull("no/such:1", Request{})
	f.fails(err, errdefs.ErrNotFound, "image "+f.registry.host+"/no/such:1", "registry "+f.registry.host, "check name and tag")
	f.nothingLeft()
}

func TestRegistryDown(t *testing.T) {
	f := newFixture(t)
	f.registry.Close()
	_, err := f.pull("image:1", Request{})
	f.fails(err, errdefs.ErrUnavailable, "registry "+f.registry.host, "connection refused", "network")
}

func TestRegistryInTrouble(t *testing.T) {
	f := newFixture(t)
	for status, part := range map[int]string{503: "try again later", 429: "limits the rate"} {
		f.registry.set(rules{before: func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true }})
		_, err := f.pull("image:1", Request{})
		f.fails(err, errdefs.ErrUnavailable, fmt.Sprint(status), part)
	}
}

func TestPolicies(t *testing.T) {
	f := newFixture(t)
	first := f.registry.put(t, "image:1", randomImage(t, ""))

	_, err := f.pull("image:1", Request{Policies: []Policy{Never}})
	f.fails(err, errdefs.ErrNotFound, "does not have it", `"never"`, "if-not-present")
	f.mustPull("image:1", Request{Policies: []Policy{Never, IfNotPresent}})
	f.says(f.log.String(), `WARNING: Failed to pull image with policy "never": `, `Attempt #2: Trying "if-not-present" pull policy`)

	second := f.registry.put(t, "image:1", randomImage(t, ""))
	for _, p := range []Policy{Never, IfNotPresent} {
		if got := f.mustPull("image:1", Request{Policies: []Policy{p}}).Target().Digest.String(); got != first {
			t.Errorf("%s gave %s, want the image that was there, %s", p, got, first)
		}
	}
	if got := f.mustPull("image:1", Request{Policies: []Policy{Always}}).Target().Digest.String(); got != second {
		t.Errorf("always gave %s, want the registry's image, %s", got, second)
	}

	f.registry.Close()
	f.mustPull("image:1", Request{Policies: []Policy{Always, IfNotPresent}})
	f.says(f.log.String(), `WARNING: Failed to pull image with policy "always": `, "cannot be reached")
	_, err = f.pull("other:1", Request{Policies: []Policy{Always, IfNotPresent}})
	f.fails(err, errdefs.ErrUnavailable, "no pull policy of [always if-not-present] gave the image")
}

func TestCredentials(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		t.Run(fmt.Sprintf("bearer=%t", bearer), func(t *testing.T) {
			f := newFixture(t)
			f.registry.set(rules{bearer: bearer, password: func(user string) string { return "right-of-" + user }})
			f.registry.put(t, "group/image:1", randomImage(t, ""))
			right := Source{Name: "job payload", Logins: []Login{{f.registry.host, "job", "right-of-job"}}}
			wrong := Source{Name: "DOCKER_AUTH_CONFIG", Config: auths(map[string]string{f.registry.host + "/group": "u"})}

			_, err := f.pull("group/image:1", Request{Keychain: NewKeychain(wrong)})
			class := error(errdefs.ErrUnauthenticated)
			if bearer {
				class = errdefs.ErrPermissionDenied // the token service answers 403, as GitLab's does
			}
			f.fails(err, class, "refused the credentials from DOCKER_AUTH_CONFIG")
			f.mustPull("group/image:1", Request{Keychain: NewKeychain(wrong, right)})
			f.says(f.log.String(), "Authenticating with credentials from DOCKER_AUTH_CONFIG\n",
				"refused the credentials from DOCKER_AUTH_CONFIG\n", "Authenticating with credentials from job payload\n")

			// The image is on the node now, but that gives nobody the right to it.
			fetched := f.registry.count("GET", "/blobs/")
			if _, denied := f.pull("group/image:1", Request{Keychain: NewKeychain(wrong)}); !refusal(denied) {
				t.Errorf("error is %v, want a refusal", denied)
			}
			if _, denied := f.pull("group/image:1", Request{}); !refusal(denied) {
				t.Errorf("error without credentials is %v, want a refusal", denied)
			}
			f.mustPull("group/image:1", Request{Keychain: NewKeychain(right)})
			if now := f.registry.count("GET", "/blobs/"); now != fetched {
				t.Errorf("%d blobs were fetched again", now-fetched)
			}
			if all := f.log.String() + err.Error(); strings.Contains(all, "right-of-job") || strings.Contains(all, "secret-of-u") {
				t.Errorf("a secret is told:\n%s", all)
			}
		})
	}
}

func refusal(err error) bool { return errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) }

func TestNoCredentials(t *testing.T) {
	f := newFixture(t)
	f.registry.set(rules{password: func(string) string { return "right" }})
	f.registry.put(t, "image:1", randomImage(t, ""))
	_, err := f.pull("image:1", Request{Keychain: NewKeychain(
		Source{Name: "DOCKER_AUTH_CONFIG", Config: []byte(`{"credsStore": "evil"}`)})})
	f.fails(err, errdefs.ErrUnauthenticated, "there are none for it", "DOCKER_AUTH_CONFIG", "credential_helpers")
	f.says(f.log.String(), "WARNING: ", "credential_helpers")
}

func TestHelperIsNotRunForPublicImage(t *testing.T) {
	f := newFixture(t)
	asked := fakeHelper(t, "exit 1")
	f.registry.put(t, "image:1", randomImage(t, ""))
	f.mustPull("image:1", Request{Keychain: NewKeychain(Source{Config: []byte(`{"credsStore": "fake"}`), AnyHelper: true})})
	if _, err := os.Stat(asked); !os.IsNotExist(err) {
		t.Errorf("the helper ran: %v", err)
	}
}

func TestSignedURLIsNotTold(t *testing.T) {
	f := newFixture(t)
	f.registry.put(t, "image:1", randomImage(t, ""))
	down := httptest.NewServer(nil)
	down.Close()
	f.registry.set(rules{before: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, down.URL+"/blob?X-Signature=hunter2", http.StatusTemporaryRedirect)
		return true
	}})
	_, err := f.pull("image:1", Request{})
	f.fails(err, errdefs.ErrUnavailable, down.URL+"/blob")
	if strings.Contains(fmt.Sprint(err), "hunter2") {
		t.Errorf("the signature is told: %v", err)
	}
	f.nothingLeft()
}

func TestMirror(t *testing.T) {
	f := newFixture(t)
	mirror := newTestRegistry(t, httptest.NewServer)
	img := randomImage(t, "")
	f.registry.put(t, "image:1", img)
	f.registry.put(t, "image:2", randomImage(t, ""))
	mirror.put(t, "image:1", img)
	f.hosts("registry.test", fmt.Sprintf("server = %q\n[host.%q]\n", f.registry.URL, mirror.URL))

	f.mustPull("registry.test/image:1", Request{})
	if asked, n := f.registry.count(), mirror.count("GET", "/blobs/"); asked != 0 || n != 4 {
		t.Errorf("the registry was asked %d times, the mirror for %d blobs", asked, n)
	}
	f.mustPull("registry.test/image:2", Request{}) // which the mirror lacks
	mirror.Close()
	f.mustPull("registry.test/image:1", Request{})
}

func TestCertificateAuthority(t *testing.T) {
	f := newFixture(t)
	secure := newTestRegistry(t, httptest.NewTLSServer)
	secure.put(t, "image:1", randomImage(t, ""))
	f.hosts("registry.test", fmt.Sprintf("server = %[1]q\n[host.%[1]q]\n", secure.URL))
	_, err := f.pull("registry.test/image:1", Request{})
	f.fails(err, errdefs.ErrUnavailable, "certificate", "hosts.toml")

	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	f.hosts("registry.test", fmt.Sprintf("server = %[1]q\n[host.%[1]q]\nca = %[2]q\n", secure.URL, ca))
	f.mustPull("registry.test/image:1", Request{})
}

func TestPlatform(t *testing.T) {
	f := newFixture(t)
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	f.registry.put(t, "both:1", randomIndex(t, runtime.GOARCH, other))
	f.registry.put(t, "index:1", randomIndex(t, other))
	f.registry.put(t, "single:1", randomImage(t, other))

	for _, ref := range []string{"index:1", "single:1"} {
		_, err := f.pull(ref, Request{})
		f.fails(err, errdefs.ErrNotFound, "has it for linux/"+other+", not for linux/"+runtime.GOARCH)
	}
	if n := f.registry.count("GET", "/blobs/"); n != 1 {
		t.Errorf("%d blobs were fetched, want the config that tells the platform", n)
	}

	for _, ref := range []string{"both:1", "single:1"} {
		f.mustPull(ref, Request{Platform: "linux/" + other})
		_, err := f.pull(ref, Request{Policies: []Policy{Never}})
		f.fails(err, errdefs.ErrNotFound, "the node has it only for linux/"+other+", not for linux/"+runtime.GOARCH)
	}
	f.mustPull("both:1", Request{Policies: []Policy{IfNotPresent}})
	f.says(f.log.String(), "both:1: the node has it only for linux/"+other)
	for _, platform := range []string{"linux/" + other, ""} {
		f.mustPull("both:1", Request{Policies: []Policy{Never}, Platform: platform})
	}
}

func TestUnpacksWhatIsOnlyStored(t *testing.T) {
	f := newFixture(t)
	f.registry.put(t, "image:1", randomImage(t, ""))
	img := f.mustPull("image:1", Request{})
	diffs, err := img.RootFS(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	snapshots := f.puller.Client.SnapshotService(f.puller.snapshotter())
	for key := identity.ChainID(diffs).String(); key != ""; {
		parent, err := snapshots.Stat(f.ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := snapshots.Remove(f.ctx, key); err != nil {
			t.Fatal(err)
		}
		key = parent.Parent
	}
	f.registry.Close()
	f.mustPull("image:1", Request{Policies: []Policy{Never}})
	f.says(f.log.String(), "Unpacking image")
	f.nothingLeft()
}

func TestLeaseHoldsImage(t *testing.T) {
	f := newFixture(t)
	f.registry.put(t, "image:1", randomImage(t, ""))
	f.mustPull("image:1", Request{})
	lease, err := f.puller.Client.LeasesService().Create(f.ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	plain := f.ctx
	f.ctx = leases.WithLease(plain, lease.ID)
	img := f.mustPull("image:1", Request{Policies: []Policy{IfNotPresent}})
	f.ctx = plain

	if err := f.puller.Client.ImageService().Delete(plain, img.Name(), images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
	if unpacked, err := img.IsUnpacked(plain, f.puller.snapshotter()); err != nil || !unpacked {
		t.Errorf("the lease does not hold the image: %v", err)
	}
	if err := f.puller.Client.LeasesService().Delete(plain, lease, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if _, err := f.puller.Client.ContentStore().Info(plain, img.Target().Digest); !errdefs.IsNotFound(err) {
		t.Errorf("the image is still there without lease: %v", err)
	}
}

func TestProgress(t *testing.T) {
	f := newFixture(t)
	f.puller.interval = 10 * time.Millisecond
	f.registry.put(t, "image:1", randomImage(t, ""))
	f.registry.set(rules{before: func(_ http.ResponseWriter, r *http.Request) bool {
		// Layers come once there are lines that say that they do not.
		for r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && f.registry.count("GET", "/blobs/") > 1 &&
			strings.Count(f.log.String(), " of 3 layers, ") < 2 && r.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return false
	}})
	f.mustPull("image:1", Request{})
	for _, line := range []string{
		`(?m)^  0B of 19\dkB, 0 of 3 layers, 0B/s$`,
		`(?m)^Pulled 19\dkB in \d+\.\d s \(3 layers, 0 of them already on the node\)$`,
	} {
		if !regexp.MustCompile(line).MatchString(f.log.String()) {
			t.Errorf("no line %s in:\n%s", line, f.log.String())
		}
	}
}

func TestCancel(t *testing.T) {
	f := newFixture(t)
	f.registry.put(t, "image:1", randomImage(t, ""))
	plain := f.ctx
	ctx, cancel := context.WithCancel(plain)
	f.registry.set(rules{before: func(_ http.ResponseWriter, r *http.Request) bool {
		if f.registry.count("GET", "/blobs/") > 1 {
			cancel()
			<-r.Context().Done()
		}
		return false
	}})
	f.ctx = ctx
	if _, err := f.pull("image:1", Request{Policies: []Policy{Always, IfNotPresent}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want canceled", err)
	}
	if strings.Contains(f.log.String(), "Attempt #2") {
		t.Errorf("another policy is tried after the cancel:\n%s", f.log.String())
	}
	f.nothingLeft()

	f.registry.set(rules{})
	f.ctx = plain
	f.mustPull("image:1", Request{})
}

func TestOnePullForManyProcesses(t *testing.T) {
	f := newFixture(t)
	f.registry.put(t, "image:1", randomIndex(t, runtime.GOARCH))
	const jobs = 10
	// The download starts when all have asked for the image.
	f.registry.set(rules{before: func(_ http.ResponseWriter, r *http.Request) bool {
		for r.Method == http.MethodGet && f.registry.count("HEAD", "/manifests/") < jobs && r.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return false
	}})
	work, err := json.Marshal(childWork{address, namespace(f.ctx), f.puller.LockDir, f.registry.host + "/image:1"})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(f.ctx, time.Minute)
	defer cancel()
	logs := make([]string, jobs)
	var wg sync.WaitGroup
	for i := range jobs {
		wg.Go(func() {
			cmd := exec.CommandContext(ctx, self)
			cmd.Env = append(os.Environ(), childEnv+"="+string(work))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("job %d: %v\n%s", i, err, out)
			}
			logs[i] = string(out)
		})
	}
	wg.Wait()
	all := strings.Join(logs, "")
	if n := strings.Count(all, "Waiting for another job's pull of "); n != jobs-1 {
		t.Errorf("%d jobs waited, want %d", n, jobs-1)
	}
	if n := strings.Count(all, "Pulled "); n != 1 {
		t.Errorf("%d jobs downloaded, want 1", n)
	}
	if blobs, times := f.registry.count("GET", "/blobs/"), f.registry.most("GET", ""); blobs != 4 || times != 1 {
		t.Errorf("%d blobs were fetched, one of them %d times; want 4, once each", blobs, times)
	}
	f.nothingLeft()
}
