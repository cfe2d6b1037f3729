package docker

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/network/namespace"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// exchange is what people do with registries. $REG is one that asks for a
// login, $MINE a repository there that the login may write, $THEIRS one that
// it may not.
const exchange = `
pull $REG/reader/app:1
login -u reader -p wrong $REG
login -u reader -p open-sesame $REG
login $REG
tag $IMAGE $MINE/app:1
tag $IMAGE $MINE/app:2
push $MINE/app:1
push $MINE/app:1
push -q $MINE/app:2
push $MINE/app:none
push $MINE/none
push --all-tags $MINE/app
push --all-tags -q $MINE/app
rmi $MINE/app:1 $MINE/app:2
pull $MINE/app:2
pull $MINE/app:2
pull -q $MINE/app@$DIGEST
pull $MINE/app:none
pull $MINE/none
run --rm $MINE/app@$DIGEST echo by digest
pull --platform linux/arm64 $MINE/multi:1
pull $MINE/multi:1
pull --all-platforms $MINE/multi:1
tag $MINE/multi:1 $MINE/multi:2
push --platform linux/amd64 $MINE/multi:2
manifest inspect --insecure $MINE/multi:2
tag $IMAGE $THEIRS/app:1
push $THEIRS/app:1
logout $REG
push $MINE/app:2
pull $MINE/app:1
run --rm $MINE/nothing:1 true
`

// TestExchange pushes to and pulls from registries that ask for a login, and
// for a token, with the job's docker and with the bare daemon.
func TestExchange(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	j := hold(t, "default", gitlab.JobSpec{})
	busybox := registry.Image(images.Busybox)
	digest := ""
	for _, host := range []string{"unix://" + j.socket(), "unix://" + bare()} {
		_, err := client(t, host, "", "pull", busybox)
		require.NoError(t, err)
	}
	_, digest, _ = strings.Cut(j.must("image", "inspect", "-f", "{{index .RepoDigests 0}}", busybox), "@")
	require.NotEmpty(t, digest)
	_, err := client(t, "unix://"+bare(), "", "network", "create", "exchange")
	require.NoError(t, err)
	defer func() { _, _ = client(t, "unix://"+bare(), "", "network", "rm", "exchange") }()
	for name, at := range map[string]struct{ registry, theirs string }{
		"login": {registry.PrivateAddress, registry.PrivateAddress + "/other"},
		"token": {registry.TokenAddress, registry.TokenAddress + "/other"},
	} {
		t.Run(name, func(t *testing.T) {
			mine := at.registry + "/reader"
			for _, side := range []string{"job", "bare"} {
				putIndex(t, mine+"/"+side+"/multi:1")
			}
			text := strings.NewReplacer("$MINE", mine+"/$SIDE", "$THEIRS", at.theirs+"/$SIDE", "$REG", at.registry, "$DIGEST", digest).Replace(exchange)
			script{lines: text, dir: t.TempDir(), bare: func(args []string) []string {
				if args[0] == "run" {
					return append([]string{"run", "--network", "exchange"}, args[1:]...)
				}
				return args
			}, unlike: []difference{
				{regexp.MustCompile(`(reader|other)/(job|bare)`), "$1/<side>"},
				{regexp.MustCompile(`(?m)^[0-9a-f]{12}: Waiting\n`), ""}, // how far it is
			}}.compare(t, j)
			// Those that are there.
			_, _ = client(t, "unix://"+bare(), "", "rmi", "-f", mine+"/bare/app:1", mine+"/bare/app:2", mine+"/bare/multi:1", mine+"/bare/multi:2", at.theirs+"/bare/app:1")
			// What clients of the API ask.
			login := base64.URLEncoding.EncodeToString([]byte(`{"username":"reader","password":"open-sesame"}`))
			for _, path := range []string{"/distribution/" + mine + "/job/multi:1/json", "/distribution/" + mine + "/job/app:2/json", "/distribution/" + mine + "/job/none/json"} {
				status, answer := j.api("GET", path, "", "X-Registry-Auth", login)
				wantStatus, want := request(t, bare(), "GET", path, "", "X-Registry-Auth", login)
				require.Equal(t, wantStatus == http.StatusOK, status == http.StatusOK, "%s: %s\n%s", path, answer, want)
				if status == http.StatusOK && strings.Contains(want, `"Platforms":[`) {
					require.JSONEq(t, want, answer)
				}
			}
		})
	}
}

// putIndex puts an image of two platforms into a registry.
func putIndex(t *testing.T, as string) {
	t.Helper()
	ref, err := name.ParseReference(registry.Image(images.Busybox), name.Insecure)
	require.NoError(t, err)
	amd, err := remote.Image(ref)
	require.NoError(t, err)
	file, err := amd.ConfigFile()
	require.NoError(t, err)
	file = file.DeepCopy()
	file.Architecture = "arm64"
	arm, err := mutate.ConfigFile(amd, file)
	require.NoError(t, err)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	to, err := name.ParseReference(as, name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(to, index, remote.WithAuth(&authn.Basic{Username: images.Username, Password: images.Password})))
}

// inside serves HTTP as a process of the job's would.
func (j *job) inside(h http.Handler, host string) (address string) {
	j.t.Helper()
	var l net.Listener
	require.NoError(j.t, namespace.Do(j.admission.Network.Netns, func() (err error) {
		l, err = net.Listen("tcp4", host+":0")
		return err
	}))
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	j.t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(j.t, err)
	return port
}

// TestOwnRegistry has jobs use registries of their own: services, containers,
// what listens on their localhost. What comes from there is for the project
// alone, and no more trusted than what it builds.
func TestOwnRegistry(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	j := hold(t, "kind", gitlab.JobSpec{})
	web := registry.Image(images.Web)
	j.pull(web)
	shelf := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	local, docker := j.inside(shelf, "127.0.0.1"), j.inside(shelf, j.admission.Network.Address.String())
	for _, at := range []string{"localhost:" + local, "127.0.0.1:" + local, "docker:" + docker, j.admission.Network.Address.String() + ":" + docker} {
		mine := at + "/test/web:1"
		j.must("tag", web, mine)
		j.must("push", mine)
		j.must("rmi", mine)
		j.must("pull", mine)
		require.Contains(t, j.must("run", "--rm", "-e", "GREETING=own", mine, "cat", "/serve"), "httpd")
		// The name would be allowed, were it a registry of the operator's.
		out, err := j.docker("run", "--rm", "--privileged", mine, "true")
		require.Error(t, err, out)
		require.Contains(t, out, "refused by Berth")
		out, err = client(t, "unix://"+bare(), "", "image", "inspect", mine)
		require.Error(t, err, "the name is everybody's: %s", out)
	}
	j.must("run", "--rm", "--privileged", web, "true") // the test can fail
	// A job has its own localhost.
	stranger := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other")})
	out, err := stranger.docker("pull", "localhost:"+local+"/test/web:1")
	require.Error(t, err, out)
	require.Contains(t, out, "connection refused")
	// Nor is the login that is for it sent elsewhere.
	status, answer := j.api("POST", "/auth", fmt.Sprintf(`{"username":"u","password":"p","serveraddress":"localhost:%s"}`, local))
	require.Equal(t, http.StatusOK, status, answer)
}

// TestReach has a job try by its registries what it cannot reach itself: the
// node's loopback, and what its profile denies.
func TestReach(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	var visits atomic.Int64
	victim := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		visits.Add(1)
		t.Logf("the node was asked for %s %s", r.Method, r.URL)
		_, _ = io.WriteString(w, `{"token":"t","secret":"of the node"}`)
	}))
	defer victim.Close()
	host := strings.TrimPrefix(victim.URL, "http://")
	j := hold(t, "default", gitlab.JobSpec{})
	j.pull(registry.Image(images.Busybox))

	// A registry of the job's that sends everybody to the node.
	sends := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/realm/"), r.URL.Path == "/v2/":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+victim.URL+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPost:
			w.Header().Set("Location", victim.URL+"/upload")
			w.WriteHeader(http.StatusAccepted)
		case r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/push/"):
			w.WriteHeader(http.StatusNotFound)
		default:
			http.Redirect(w, r, victim.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	})
	evil := "localhost:" + j.inside(sends, "127.0.0.1")
	for _, ref := range []string{host + "/x:1", evil + "/redirect/x:1", evil + "/realm/x:1", evil + "/push/x:1", "localhost:" + strings.Split(host, ":")[1] + "/x:1"} {
		named := strings.Replace(ref, ":1", "", 1)
		if i := strings.LastIndex(ref, ":"); i > 0 {
			named = ref[:i]
		}
		j.must("tag", registry.Image(images.Busybox), ref)
		for _, call := range []string{
			"POST /images/create?fromImage=" + url.QueryEscape(named) + "&tag=1", "POST /images/" + named + "/push?tag=1", "GET /distribution/" + ref + "/json",
			"POST /auth", "GET /images/search?term=" + url.QueryEscape(ref),
		} {
			method, path, _ := strings.Cut(call, " ")
			body := ""
			if path == "/auth" {
				body = fmt.Sprintf(`{"username":"u","password":"p","serveraddress":%q}`, strings.SplitN(ref, "/", 2)[0])
			}
			auth := base64.URLEncoding.EncodeToString([]byte(`{"username":"u","password":"p"}`))
			_, answer := j.api(method, path, body, "X-Registry-Auth", auth)
			require.NotContains(t, answer, "of the node", call)
		}
	}
	require.Zero(t, visits.Load(), "the node was asked")

	// What the profile denies is out of reach, what it allows is not.
	confined := hold(t, "confined", gitlab.JobSpec{Variables: variables("GIT_STRATEGY", "none")})
	outside, err := url.Parse(server.URL())
	require.NoError(t, err)
	ask := func(j *job) string {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", j.socket())
		}}}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/distribution/"+outside.Host+"/x/json", http.NoBody)
		require.NoError(t, err)
		res, err := c.Do(r)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(text)
	}
	require.Contains(t, ask(j), "server gave HTTP response to HTTPS client")
	require.NotContains(t, ask(confined), "server gave HTTP response")
}

// TestBuildReach has builds use a registry of the job's own, where the profile
// denies all that is outside.
func TestBuildReach(t *testing.T) {
	withBuildx(t)
	confined := hold(t, "confined", gitlab.JobSpec{Variables: variables("GIT_STRATEGY", "none")})
	shelf := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	dir := t.TempDir()
	dockerfile := func(text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text+"\n"), 0o644))
	}
	for i, at := range []string{
		"localhost:" + confined.inside(shelf, "127.0.0.1"), "build:" + confined.inside(shelf, confined.admission.Network.Address.String()),
	} {
		mine := fmt.Sprintf("%s/group/x:%d", at, i)
		dockerfile(fmt.Sprintf("FROM %s\nRUN echo made %d >/made", registry.Image(images.Busybox), i))
		confined.must("buildx", "build", "--push", "-t", mine, dir)
		confined.must("rmi", mine)
		dockerfile("FROM " + mine + "\nRUN grep made /made")
		confined.must("build", "--pull", dir)
	}

	// It goes by the profile: the other job gets an answer from there.
	outside, err := url.Parse(server.URL())
	require.NoError(t, err)
	dockerfile("FROM " + outside.Host + "/x:1")
	const answered = "server gave HTTP response to HTTPS client"
	out, err := hold(t, "default", gitlab.JobSpec{}).docker("build", dir)
	require.Error(t, err)
	require.Contains(t, out, answered)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, cli, "build", dir)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+confined.socket(), "DOCKER_CONFIG="+filepath.Join(scratch, "docker-config"))
	text, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.NotContains(t, string(text), answered)
}
