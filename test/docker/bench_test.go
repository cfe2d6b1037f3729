package docker

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// held starts a job for a benchmark.
func held(b *testing.B) *job {
	b.Helper()
	if missing != "" {
		b.Skip(missing)
	}
	j := hold(b, "default", gitlab.JobSpec{Name: "bench"})
	j.pull(registry.Image(images.Busybox))
	j.must("run", "-d", "--name", "bench", registry.Image(images.Busybox), "sleep", "1000")
	return j
}

// sides are the job's endpoint and the daemon's own, for one container.
func sides(j *job) map[string][2]string {
	return map[string][2]string{
		"job":  {j.socket(), "bench"},
		"bare": {bare(), j.admission.Job + ".bench"},
	}
}

// calls is how many each side is asked, by turns: what the machine does
// besides is then the same for both.
const calls = 2000

// BenchmarkCall tells what a call costs more than at the bare daemon, at the
// median.
func BenchmarkCall(b *testing.B) {
	j := held(b)
	for _, path := range []string{"/_ping", "/containers/%s/json", "/containers/json?all=1", "/images/json", "/images/" + registry.Image(images.Busybox) + "/json", "/containers/%s/top", "/volumes", "/networks"} {
		b.Run(strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "_"), func(b *testing.B) {
			for b.Loop() {
				took := map[string][]time.Duration{}
				ask := map[string]func() time.Duration{}
				for side, at := range sides(j) {
					c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						return new(net.Dialer).DialContext(ctx, "unix", at[0])
					}}}
					defer c.CloseIdleConnections()
					url := "http://docker/v1.51" + strings.ReplaceAll(path, "%s", at[1])
					ask[side] = func() time.Duration {
						began := time.Now()
						res, err := c.Get(url)
						require.NoError(b, err)
						_, _ = io.Copy(io.Discard, res.Body)
						res.Body.Close()
						require.Equal(b, http.StatusOK, res.StatusCode)
						return time.Since(began)
					}
				}
				for range calls {
					for side, call := range ask {
						took[side] = append(took[side], call())
					}
				}
				median := func(side string) float64 {
					slices.Sort(took[side])
					return float64(took[side][calls/2].Microseconds()) / 1000
				}
				b.ReportMetric(median("bare"), "ms/bare")
				b.ReportMetric(median("job"), "ms/job")
				b.ReportMetric(median("job")-median("bare"), "ms/added")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

const megabytes = 200

// BenchmarkStream tells how fast a container's output and archives pass.
func BenchmarkStream(b *testing.B) {
	j := held(b)
	j.must("exec", "bench", "dd", "if=/dev/zero", "of=/big", "bs=1M", fmt.Sprintf("count=%d", megabytes))
	for _, what := range []struct {
		name string
		args []string
	}{
		{"attach", []string{"exec", "NAME", "cat", "/big"}},
		{"archive", []string{"cp", "NAME:/big", "-"}},
	} {
		b.Run(what.name, func(b *testing.B) {
			took := map[string][]time.Duration{}
			for b.Loop() {
				for _, side := range []string{"bare", "job"} { // by turns, for what else the machine does
					at := sides(j)[side]
					args := slices.Clone(what.args)
					for i := range args {
						args[i] = strings.ReplaceAll(args[i], "NAME", at[1])
					}
					cmd := exec.Command(cli, args...)
					cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+at[0])
					began := time.Now()
					require.NoError(b, cmd.Run())
					took[side] = append(took[side], time.Since(began))
				}
			}
			rate := map[string]float64{}
			for side, all := range took {
				slices.Sort(all)
				rate[side] = megabytes / all[len(all)/2].Seconds()
				b.ReportMetric(rate[side], "MB/s-"+side)
			}
			b.ReportMetric(rate["job"]/rate["bare"], "of-bare")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkFirstRun tells how long a job waits for its first container, its
// network included: with the node's docker, and with docker:dind, whose daemon
// is as new as the job. The one has to ask for the image, the other loads it
// from a file, which is no slower than a registry.
func BenchmarkFirstRun(b *testing.B) {
	if missing != "" {
		b.Skip(missing)
	}
	busybox := registry.Image(images.Busybox)
	first := hold(b, "default", gitlab.JobSpec{Name: "first"})
	first.pull(busybox)
	tar := filepath.Join(scratch, "first.tar")
	first.must("save", "--output", tar, busybox)
	defer os.Remove(tar)
	var berth, cold time.Duration
	n := 0
	for b.Loop() {
		j := hold(b, "default", gitlab.JobSpec{Name: "first"})
		began := time.Now()
		j.must("run", "--rm", busybox, "true")
		berth += time.Since(began)
		j.release()

		began = time.Now()
		d := startDind(b)
		d.must("load", "--input", tar)
		d.must("run", "--rm", "--network", "none", busybox, "true")
		cold += time.Since(began)
		d.remove()
		n++
	}
	b.ReportMetric(float64(berth.Milliseconds())/float64(n), "ms/berth")
	b.ReportMetric(float64(cold.Milliseconds())/float64(n), "ms/dind")
	b.ReportMetric(float64(cold)/float64(berth), "times")
	b.ReportMetric(0, "ns/op")
}

// dind is a privileged container with a docker daemon, as docker:dind is one.
type dind struct {
	b       testing.TB
	id, dir string
}

// startDind starts one on the node's own daemon, which jobs cannot, and waits
// until it answers. Its files are in a volume without a name, as docker:dind
// has it. It has neither bridge nor rules, which would take it longer.
func startDind(b testing.TB) *dind {
	b.Helper()
	dir := b.TempDir()
	id, err := client(b, "unix://"+bare(), "", "run", "-d", "--privileged", "--network", "none",
		"-v", node.Config.Runtime.Path+":/usr/local/bin:ro", "-v", dir+":/run/dind", "-v", "/var/lib/docker",
		registry.Image(images.Busybox), "dockerd", "--host", "unix:///run/dind/docker.sock", "--bridge", "none", "--iptables=false", "--ip6tables=false")
	require.NoError(b, err, id)
	d := &dind{b: b, id: strings.TrimSpace(id), dir: dir}
	for {
		if _, err := d.docker("version"); err == nil {
			return d
		}
		if state, _ := client(b, "unix://"+bare(), "", "inspect", "-f", "{{.State.Running}}", d.id); strings.TrimSpace(state) != "true" {
			log, _ := client(b, "unix://"+bare(), "", "logs", d.id)
			b.Fatalf("docker:dind has ended\n%s", tail(log))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d *dind) docker(args ...string) (string, error) {
	return client(d.b, "unix://"+d.dir+"/docker.sock", "", args...)
}

func (d *dind) must(args ...string) {
	d.b.Helper()
	out, err := d.docker(args...)
	require.NoError(d.b, err, out)
}

func (d *dind) remove() {
	out, err := client(d.b, "unix://"+bare(), "", "rm", "-f", "-v", d.id)
	require.NoError(d.b, err, out)
}

// large is the size of the image that jobs hand over.
const large = 400 // MB

// BenchmarkHandOver compares what a next job waits until it can run an image of
// 400 MB: with one that is there, and with one that is saved by the job that
// made it and loaded into a docker:dind.
func BenchmarkHandOver(b *testing.B) {
	j := held(b)
	j.must("exec", "bench", "sh", "-c", fmt.Sprintf("dd if=/dev/urandom of=/big bs=1M count=%d", large))
	j.must("commit", "bench", "large:1")
	next := hold(b, "default", gitlab.JobSpec{Name: "next"})
	next.must("run", "--rm", registry.Image(images.Busybox), "true") // not of the network
	tar := filepath.Join(scratch, "large.tar")
	defer os.Remove(tar)
	var stays, saved time.Duration
	n := 0
	for b.Loop() {
		began := time.Now()
		next.must("run", "--rm", "large:1", "true")
		stays += time.Since(began)

		d := startDind(b)
		began = time.Now()
		j.must("save", "--output", tar, "large:1")
		d.must("load", "--input", tar)
		d.must("run", "--rm", "--network", "none", "large:1", "true")
		saved += time.Since(began)
		d.remove()
		n++
	}
	b.ReportMetric(float64(stays.Milliseconds())/float64(n), "ms/stays")
	b.ReportMetric(float64(saved.Milliseconds())/float64(n), "ms/save-load")
	b.ReportMetric(float64(saved)/float64(stays), "times")
	b.ReportMetric(0, "ns/op")
	next.release()
	j.must("rmi", "-f", "large:1")
}
