package bench

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/network"
)

// BenchmarkAdmit is what berthd does for a job before and after it, and what
// of that is its network.
func BenchmarkAdmit(b *testing.B) {
	needBed(b)
	self, err := api.FindProcess(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	prepared, unprepared := openPool(b, dir, "bna", 198, 1), openPool(b, dir, "bnb", 199, 0)
	s, rounds := newSamples(), 0
	const column = "time"
	timed := func(row string, f func() error) {
		started := time.Now()
		err := f()
		s.add(row, column, time.Since(started))
		if err != nil {
			b.Fatal(err)
		}
	}
	for ; b.Loop(); rounds++ {
		awaitNetworks(b, filepath.Join(bed.node.Config.State, "netns"), bed.node.Config.Network.Pool)
		awaitNetworks(b, filepath.Join(dir, "bna"), 1)
		request := api.AdmitRequest{Profile: "default", Runner: self, Request: executor.Request{
			Job:   executor.Identity{Server: "http://bench.test", ID: int64(rounds + 1), Name: "admitted", ProjectID: 1, Project: "group/project"},
			Image: executor.ImageRequest{Name: bed.image()},
		}}
		var admission *api.Admission
		timed("admit", func() (err error) {
			admission, err = bed.node.Client.Admit(b.Context(), request, func(string) {})
			return err
		})
		timed("release", func() error { return bed.node.Client.Release(b.Context(), admission.Job) })
		takeNetwork(b, timed, "take a network from the pool", prepared, rounds)
		takeNetwork(b, timed, "make a network where the pool is empty", unprepared, rounds)
	}
	section("Admission of a job: medians of %d", rounds)
	rows := [][]string{{"", "ms"}}
	for _, row := range s.rows {
		rows = append(rows, []string{row, number(s.median(row, column), 2)})
	}
	table(rows)
	for i, name := range []string{"admit-ms", "release-ms", "pool-take-ms", "network-ms"} {
		b.ReportMetric(s.median(s.rows[i], column), name)
	}
}

func takeNetwork(b *testing.B, timed func(string, func() error), row string, p *network.Pool, number int) {
	b.Helper()
	var n network.Network
	timed(row, func() (err error) {
		n, err = p.Take(b.Context(), "j"+strconv.Itoa(number), "default")
		return err
	})
	if err := p.Release(context.Background(), n); err != nil {
		b.Fatal(err)
	}
}

// openPool opens networks beside those of the node.
func openPool(b *testing.B, dir, instance string, subnet byte, size int) *network.Pool {
	b.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	p, err := network.Open(b.Context(), network.Config{
		Instance: instance,
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, subnet, 0, 0}), 18),
		Uplinks:  netip.PrefixFrom(netip.AddrFrom4([4]byte{100, subnet - 72, 0, 0}), 24),
		Pool:     size,
		Dir:      filepath.Join(dir, instance),
		Egress:   map[string]network.Egress{"default": {}},
	}, logrus.NewEntry(log))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	if err := p.Adopt(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	return p
}

// awaitNetworks waits until a pool is full, which shows in the directory where
// it keeps namespaces.
func awaitNetworks(b *testing.B, dir string, size int) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	for {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) >= size {
			return
		}
		select {
		case <-ctx.Done():
			b.Fatalf("no %d networks in %s", size, dir)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
