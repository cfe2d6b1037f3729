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

// BenchmarkCall tells what a call costs more than at the bare daemon.
func BenchmarkCall(b *testing.B) {
	j := held(b)
	for _, path := range []string{"/_ping", "/containers/%s/json", "/containers/json?all=1", "/images/json", "/containers/%s/top"} {
		for _, side := range []string{"bare", "job"} {
			at := sides(j)[side]
			c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", at[0])
			}}}
			b.Run(strings.ReplaceAll(path, "/", "_")+"/"+side, func(b *testing.B) {
				var took []time.Duration
				for b.Loop() {
					began := time.Now()
					res, err := c.Get("http://docker/v1.51" + strings.ReplaceAll(path, "%s", at[1]))
					require.NoError(b, err)
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					took = append(took, time.Since(began))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
			})
			c.CloseIdleConnections()
		}
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
// network included. Another job's is made each time.
func BenchmarkFirstRun(b *testing.B) {
	if missing != "" {
		b.Skip(missing)
	}
	var sum time.Duration
	n := 0
	for b.Loop() {
		b.StopTimer()
		j := hold(b, "default", gitlab.JobSpec{Name: "first"})
		b.StartTimer()
		began := time.Now()
		j.must("run", "--rm", registry.Image(images.Busybox), "true")
		sum += time.Since(began)
		n++
		b.StopTimer()
		j.release()
		b.StartTimer()
	}
	b.ReportMetric(float64((sum / time.Duration(n)).Milliseconds()), "ms/run")
}

// BenchmarkHandOver compares what a next job waits for an image of 400 MB: for
// it to be found, or saved and loaded.
func BenchmarkHandOver(b *testing.B) {
	j := held(b)
	j.must("exec", "bench", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=400")
	j.must("commit", "bench", "large:1")
	tar := filepath.Join(scratch, "large.tar")
	b.Run("stays", func(b *testing.B) {
		for b.Loop() {
			j.must("image", "inspect", "-f", "{{.Id}}", "large:1")
		}
	})
	b.Run("save and load", func(b *testing.B) {
		for b.Loop() {
			j.must("save", "--output", tar, "large:1")
			j.must("load", "--input", tar)
		}
	})
	_ = os.Remove(tar)
	j.must("rmi", "-f", "large:1")
}
