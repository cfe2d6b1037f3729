package test

import (
	"context"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestIsolation has one job look for another, for the other's service and for
// the node, by all the addresses that there are.
func TestIsolation(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the node")) })}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)

	victim := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project, Name: "victim",
		Services: []gitlab.Image{{Name: registry.Image(images.Web), Alias: "web", Variables: variables("GREETING", "the service")}},
		Script: []string{
			"httpd -p 8080", "ip -4 addr show | sed -n 's,.*inet \\([0-9.]*\\)/.*,address \\1,p'",
			"sed -n 's,^\\([0-9.]*\\)\\t.*web.*,address \\1,p' /etc/hosts",
			"echo ready", "while :; do echo tick; sleep 0.1; done",
		},
	})
	t.Cleanup(victim.ForceCancel)
	require.NoError(t, victim.WaitLog(t.Context(), "\nready\n"))
	var targets []string
	for _, m := range regexp.MustCompile(`(?m)^address (\S+)$`).FindAllStringSubmatch(victim.Log(), -1) {
		if !strings.HasPrefix(m[1], "127.") {
			targets = append(targets, m[1]+":8080")
		}
	}
	require.Len(t, targets, 3, "bridge, uplink and service: %s", victim.Log())
	addresses, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addresses {
		if ip := a.(*net.IPNet).IP.To4(); ip != nil && !ip.IsLoopback() {
			targets = append(targets, net.JoinHostPort(ip.String(), port))
		}
	}
	res, err := http.Get("http://" + targets[len(targets)-1])
	require.NoError(t, err, "the node itself has to reach it")
	res.Body.Close()

	intruder := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project, Name: "intruder", Variables: variables("TARGETS", strings.Join(targets, " ")),
		Script: []string{
			// A refusal counts as an answer, too.
			"try() { code=0; timeout 2 wget -q -O /dev/null http://$1/ || code=$?; if [ $code = 143 ]; then echo \"no answer from $1\"; else echo \"answer from $1\"; fi; }",
			"for t in $TARGETS $CI_SERVER_HOST:$CI_SERVER_PORT; do try $t & done; wait",
		},
	})
	require.Equal(t, gitlab.Success, end(t, intruder))
	for _, target := range targets {
		require.Contains(t, intruder.Log(), "\nno answer from "+target+"\n")
	}
	require.Regexp(t, "\nanswer from 203", intruder.Log(), "the outside is reached")
	victim.ForceCancel()
	require.NoError(t, node.AwaitGone(context.WithoutCancel(t.Context()), victim.ID))
}

// TestSameID has two GitLabs that both have a job of the same id.
func TestSameID(t *testing.T) {
	needNode(t)
	t.Parallel()
	var jobs []*gitlab.Job
	for range 2 {
		s, err := newServer(node)
		require.NoError(t, err)
		t.Cleanup(s.stop)
		project, err := s.AddProject("same/id", files)
		require.NoError(t, err)
		jobs = append(jobs, s.enqueue(t, "default", gitlab.JobSpec{
			Project: project,
			Script:  []string{"echo begun", "while ! [ -e go ]; do sleep 0.1; done", "cat go"},
			Cache:   []gitlab.Cache{{Key: "a", Paths: []string{"go"}}},
		}))
	}
	require.Equal(t, jobs[0].ID, jobs[1].ID)
	for _, j := range jobs {
		require.NoError(t, j.WaitLog(t.Context(), "begun"))
	}
	running, err := node.Client.Jobs(t.Context())
	require.NoError(t, err)
	var keys []string
	for _, j := range running {
		if j.Identity.ID == jobs[0].ID && j.Identity.Project == "same/id" {
			keys = append(keys, j.Key)
		}
	}
	require.Len(t, keys, 2)
	for _, key := range keys {
		attach(t, key, "echo "+key+" >/builds/same/id/go")
	}
	said := map[string]bool{}
	for _, j := range jobs {
		require.Equal(t, gitlab.Success, end(t, j))
		for _, key := range keys {
			if strings.Contains(j.Log(), "\n"+key+"\n") {
				said[key] = true
			}
		}
	}
	require.Len(t, said, 2)
}
