package network

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

func TestNothingIsLeft(t *testing.T) {
	nodetest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "netns")
	before := state(t, dir)
	config := testConfig(dir)
	config.Pool = 2
	p, err := Open(t.Context(), config, testLog())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Adopt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	awaitPool(t, p)
	idle := state(t, dir)

	n, err := p.Take(t.Context(), "job", "open")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := p.Join(t.Context(), n, "service", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Join(t.Context(), n, "service", 2); !errors.Is(err, os.ErrExist) {
		t.Errorf("second endpoint 2: %v", err)
	}
	if s := state(t, dir); !strings.Contains(s, "bet-1-2") || !strings.Contains(s, `"but-1" . 100.64.0.1 : jump outside_open`) {
		t.Errorf("job's links or rules are missing:\n%s", s)
	}
	awaitPool(t, p)
	for range 2 {
		release(t, p, n)
	}
	if s := state(t, dir); strings.Contains(s, "t-1") {
		t.Errorf("released network left\n%s", s)
	}
	if _, err := p.Join(t.Context(), n, "late", 0); !errdefs.IsNotFound(err) {
		t.Errorf("join after release: %v", err)
	}
	if got, want := strings.Count(state(t, dir), "\n"), strings.Count(idle, "\n"); got != want {
		t.Errorf("%d lines of state, %d before the job", got, want)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := state(t, dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if _, err := p.Take(t.Context(), "job", "open"); !errdefs.IsUnavailable(err) {
		t.Errorf("take after close: %v", err)
	}
}

// awaitPool waits until the pool is full.
func awaitPool(t testing.TB, p *Pool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); p.short(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("pool does not fill")
		}
	}
}

func TestAdoptAfterKill(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	dir := filepath.Join(t.TempDir(), "netns")
	before := state(t, dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var networks []Network
	err = json.NewDecoder(out).Decode(&networks)
	if _, inUse := Open(t.Context(), testConfig(dir), testLog()); !errdefs.IsUnavailable(inUse) {
		t.Errorf("opened twice: %v", inUse)
	}
	tidy(t, cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	if err != nil {
		t.Fatal(err)
	}
	kept, lost := networks[0], networks[1]

	p, err := Open(t.Context(), testConfig(dir), testLog())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call(kept.Netns, "203.0.113.10:7"); err != nil {
		t.Errorf("job without berthd: %v", err)
	}
	if _, err := p.Take(t.Context(), "early", "open"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("take before adopt: %v", err)
	}
	if err := p.Adopt(t.Context(), []Network{kept}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lost.Netns); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lost network's namespace: %v", err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	if want := []string{kept.Bridge, kept.Uplink, p.config.link(routerLink, kept.Slot), "lo", "out0"}; !slices.Equal(names, want) {
		t.Errorf("links %v, expected %v", names, want)
	}
	if _, err := call(kept.Netns, "203.0.113.10:7"); err != nil {
		t.Errorf("adopted job: %v", err)
	}
	if _, err := p.Join(t.Context(), kept, "late", 0); err != nil {
		t.Errorf("join adopted: %v", err)
	}
	release(t, p, lost)
	release(t, p, kept)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := state(t, dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestAdoptRefusesStrangers(t *testing.T) {
	nodetest.NeedRoot(t)
	config := testConfig(t.TempDir())
	p, err := Open(t.Context(), config, testLog())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { tidy(t, p.Close(t.Context())) }()
	n := config.network(3)
	n.Job, n.Profile = "job", "open"
	other := n
	other.Bridge = "bjx-3"
	twin := n
	twin.Job = "twin"
	for _, inUse := range [][]Network{{other}, {n, twin}} {
		if err := p.Adopt(t.Context(), inUse); !errdefs.IsInvalidArgument(err) {
			t.Errorf("adopt %v: %v", inUse, err)
		}
	}
}

// TestCloseWithJob: a job outlives berthd.
func TestCloseWithJob(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	config := testConfig(t.TempDir())
	config.Pool = 1
	first, err := Open(t.Context(), config, testLog())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Adopt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	n, err := first.Take(t.Context(), "job", "open")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := call(n.Netns, "203.0.113.10:7"); err != nil {
		t.Errorf("after close: %v", err)
	}
	second, err := Open(t.Context(), config, testLog())
	if err != nil {
		t.Fatal(err)
	}
	delete(second.config.Egress, "open")
	if err := second.Adopt(t.Context(), []Network{n}); err != nil {
		t.Fatal(err)
	}
	if _, err := call(n.Netns, "203.0.113.10:7"); err == nil {
		t.Error("a job of a profile that is gone still reaches the outside")
	}
	release(t, second, n)
	if err := second.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	nodetest.NeedRoot(t)
	newOutside(t)
	p := openPool(t, testConfig(filepath.Join(t.TempDir(), "netns")))
	take(t, p, "first", "open") // makes the directory
	before := state(t, p.config.Dir)
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T) context.Context
	}{
		{"no nft", func(t *testing.T) context.Context {
			t.Setenv("PATH", t.TempDir())
			return t.Context()
		}},
		{"cancelled", func(t *testing.T) context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx
		}},
		{"route in the way", func(t *testing.T) context.Context {
			var routes []string
			for slot := range 10 {
				routes = append(routes, add(p.config.Uplinks.Addr(), slot).String())
			}
			for _, r := range routes[2:] {
				run(t, "ip", "route", "add", r, "dev", "out0", "scope", "link")
			}
			t.Cleanup(func() {
				for _, r := range routes[2:] {
					run(t, "ip", "route", "del", r)
				}
			})
			return t.Context()
		}},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			if n, err := p.Take(c.spoil(t), "job", "open"); err == nil {
				t.Errorf("got network %+v", n)
			}
		})
		if after := state(t, p.config.Dir); ok && after != before {
			t.Errorf("%s: before\n%s\nafter\n%s", c.name, before, after)
		}
	}
	take(t, p, "second", "open")
}

func TestExhaustion(t *testing.T) {
	nodetest.NeedRoot(t)
	config := testConfig(t.TempDir())
	config.Subnet = netip.MustParsePrefix("10.201.0.0/22") // three networks
	config.Pool = 1
	p := openPool(t, config)
	var taken []Network
	for _, job := range []string{"a", "b", "c"} {
		awaitPool(t, p)
		taken = append(taken, take(t, p, job, "open"))
	}
	_, err := p.Take(t.Context(), "d", "open")
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "all 3 networks of 10.201.0.0/22 are in use") {
		t.Errorf("fourth of three: %v", err)
	}
	release(t, p, taken[1])
	again := take(t, p, "d", "open")
	if again.Slot != taken[1].Slot {
		t.Errorf("got slot %d, expected %d", again.Slot, taken[1].Slot)
	}
	release(t, p, taken[1]) // its job no longer has it
	if _, err := os.Stat(again.Netns); err != nil {
		t.Errorf("releasing twice took another's network: %v", err)
	}
	if _, err := p.Join(t.Context(), again, "s", maxEndpoints); !errdefs.IsResourceExhausted(err) {
		t.Errorf("endpoint %d: %v", maxEndpoints, err)
	}
}

// TestConcurrency has more jobs at once than the pool holds.
func TestConcurrency(t *testing.T) {
	nodetest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "netns")
	config := testConfig(dir)
	config.Pool = 2
	p := openPool(t, config)
	var g errgroup.Group
	for i := range 12 {
		g.Go(func() error {
			n, err := p.Take(t.Context(), string(rune('a'+i)), "open")
			if err != nil {
				return err
			}
			if _, err := p.Join(t.Context(), n, "s", 0); err != nil {
				return err
			}
			var twice errgroup.Group
			for range 2 {
				twice.Go(func() error { return p.Release(t.Context(), n) })
			}
			return twice.Wait()
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	awaitPool(t, p)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != config.Pool {
		t.Errorf("%d namespaces, expected the %d of the pool", len(files), config.Pool)
	}
}
