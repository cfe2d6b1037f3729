package image

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	fake "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// testRegistry is a registry on loopback that counts what it is asked for.
type testRegistry struct {
	*httptest.Server
	host    string
	handler http.Handler

	mu     sync.Mutex
	counts map[string]int // by method and path
	rules  rules
}

// rules say how a registry departs from letting everybody have everything at once.
type rules struct {
	password func(user string) string                          // nil lets everybody in
	bearer   bool                                              // hand out tokens, as large registries do
	before   func(w http.ResponseWriter, r *http.Request) bool // may answer itself, returning true
}

func (r *testRegistry) set(rules rules) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = rules
}

func newTestRegistry(t *testing.T, start func(http.Handler) *httptest.Server) *testRegistry {
	t.Helper()
	r := &testRegistry{counts: map[string]int{}, handler: fake.New(fake.Logger(log.New(io.Discard, "", 0)))}
	r.Server = start(r)
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.host = r.Listener.Addr().String()
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Header.Get("User-Agent") == "setup" {
		r.handler.ServeHTTP(w, req)
		return
	}
	r.mu.Lock()
	r.counts[req.Method+" "+req.URL.Path]++
	rules := r.rules
	r.mu.Unlock()
	switch {
	case req.URL.Path == "/token":
		rules.token(w, req)
	case rules.password != nil && !rules.authorized(w, req, r.URL):
	case rules.before != nil && rules.before(w, req):
	default:
		r.handler.ServeHTTP(w, req)
	}
}

func (r rules) authorized(w http.ResponseWriter, req *http.Request, url string) bool {
	if r.bearer {
		if strings.HasPrefix(req.Header.Get("Authorization"), "Bearer token-of-") {
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:x:pull"`, url))
	} else {
		if user, password, ok := req.BasicAuth(); ok && password == r.password(user) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	}
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

func (r rules) token(w http.ResponseWriter, req *http.Request) {
	user, password, ok := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password, ok = req.FormValue("username"), req.FormValue("password"), true
	}
	if !ok || password != r.password(user) {
		http.Error(w, "access forbidden", http.StatusForbidden)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"token": "token-of-" + user, "access_token": "token-of-" + user})
}

// count sums the requests whose method and path contain all parts.
func (r *testRegistry) count(parts ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
next:
	for request, times := range r.counts {
		for _, part := range parts {
			if !strings.Contains(request, part) {
				continue next
			}
		}
		n += times
	}
	return n
}

// most is how often the most wanted of the requests was made whose method and path contain all parts.
func (r *testRegistry) most(method, part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for request, times := range r.counts {
		if strings.HasPrefix(request, method) && strings.Contains(request, part) {
			n = max(n, times)
		}
	}
	return n
}

// put stores an image or index under a name such as group/image:1 and returns its digest.
func (r *testRegistry) put(t *testing.T, path string, what interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+path, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	options := []remote.Option{remote.WithTransport(setup{r.Client().Transport})}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(ref, what, options...)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what, options...)
	}
	if err != nil {
		t.Fatal(err)
	}
	digest, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// setup marks the requests of a test itself, which are neither counted nor refused.
type setup struct{ http.RoundTripper }

func (s setup) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", "setup")
	return s.RoundTripper.RoundTrip(req)
}

// randomImage makes an image of three layers for a platform; an empty architecture leaves the platform out.
func randomImage(t *testing.T, architecture string) v1.Image {
	t.Helper()
	img, err := random.Image(64<<10, 3)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	if file.Architecture = architecture; architecture != "" {
		file.OS = "linux"
	}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

func randomIndex(t *testing.T, architectures ...string) v1.ImageIndex {
	t.Helper()
	var list []mutate.IndexAddendum
	for _, a := range architectures {
		list = append(list, mutate.IndexAddendum{
			Add:        randomImage(t, a),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: a}},
		})
	}
	return mutate.AppendManifests(empty.Index, list...)
}
