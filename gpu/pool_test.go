package gpu

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gitlab.com/berth-ci/berth/executor"
)

func called(t *ticket) bool {
	select {
	case <-t.called:
		return true
	default:
		return false
	}
}

// TestPoolIsFair lets jobs of all kinds come, go and lose patience, devices
// fall ill and get well, and holds after each step that
//   - no device has two holders, and nobody what he has not asked for,
//   - nobody is overtaken by who wants a device that he could have had,
//   - what could be given is given, and what a profile may have is kept to.
func TestPoolIsFair(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		inventory := board(rapid.IntRange(1, 8).Draw(rt, "gpus"))
		for g := range inventory.Devices {
			if rapid.IntRange(0, 3).Draw(rt, "cut") == 0 {
				slice(inventory, g, 7, "1g.5gb", 5*gib)
			}
		}
		for i := range inventory.Devices {
			if rapid.Bool().Draw(rt, "other") {
				inventory.Devices[i].Model = "NVIDIA H100 80GB HBM3"
			}
		}
		p := NewPool("")
		p.Update(inventory)
		profiles := map[string]executor.GPUs{"free": anything, "small": {Models: []string{"*"}, Total: 3}, "h100": {Models: []string{"h100"}}}
		var waiting, running []*ticket // in order of arrival
		next := 0
		rt.Repeat(map[string]func(*rapid.T){
			"come": func(rt *rapid.T) {
				next++
				profile := rapid.SampledFrom([]string{"free", "small", "h100"}).Draw(rt, "profile")
				c := claim(next, Request{
					Count:      rapid.IntRange(1, 4).Draw(rt, "count"),
					Model:      rapid.SampledFrom([]string{"", "a100", "h100"}).Draw(rt, "model"),
					MIGProfile: rapid.SampledFrom([]string{"", "", "1g.5gb"}).Draw(rt, "mig"),
				})
				c.Profile, c.Settings = profile, profiles[profile]
				if total := c.Settings.Total; total > 0 {
					c.Request.Count = min(c.Request.Count, total)
				}
				tk, err := p.join(c)
				if err != nil {
					var build *executor.BuildFailure
					require.True(rt, errors.As(err, &build), err)
					return
				}
				waiting = append(waiting, tk)
			},
			"end": func(rt *rapid.T) {
				if len(running) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(running)-1).Draw(rt, "who")
				require.True(rt, p.Release(running[i].claim.Job.Key()))
				require.False(rt, p.Release(running[i].claim.Job.Key()), "released twice")
				running = slices.Delete(running, i, i+1)
			},
			"give up": func(rt *rapid.T) {
				if len(waiting) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(waiting)-1).Draw(rt, "who")
				p.leave(waiting[i])
				waiting = slices.Delete(waiting, i, i+1)
			},
			"fall ill": func(rt *rapid.T) {
				d := rapid.SampledFrom(inventory.Devices).Draw(rt, "device")
				require.NoError(rt, p.Quarantine(d.UUID, Quarantine{Cause: CauseXID}))
			},
			"get well": func(rt *rapid.T) {
				for uuid := range p.Shelf() {
					require.NoError(rt, p.Unquarantine(uuid))
				}
			},
			"": func(rt *rapid.T) {
				before := waiting
				waiting = slices.DeleteFunc(slices.Clone(waiting), func(tk *ticket) bool {
					if called(tk) {
						running = append(running, tk)
						return true
					}
					return false
				})
				// Nobody that came later was given what one of those who wait could use.
				for i, w := range before {
					if called(w) {
						continue
					}
					for _, later := range before[i+1:] {
						if !called(later) {
							continue
						}
						if total := w.claim.Settings.Total; later.claim.Profile == w.claim.Profile && total > 0 && p.held(w.claim.Profile)+w.claim.Request.Count > total {
							rt.Fatalf("job %d overtook %d of its profile", later.claim.Job.ID, w.claim.Job.ID)
						}
						capped := w.claim.Settings.Total > 0 && p.held(w.claim.Profile)+w.claim.Request.Count > w.claim.Settings.Total
						blocked := slices.ContainsFunc(before[:i], func(b *ticket) bool {
							return !called(b) && b.claim.Profile == w.claim.Profile && b.claim.Settings.Total > 0
						})
						for _, uuid := range later.lease.Devices {
							d, _ := inventory.find(uuid)
							if w.claim.suits(d) && !capped && !blocked {
								rt.Fatalf("job %d got %s, which %d waits for", later.claim.Job.ID, uuid, w.claim.Job.ID)
							}
						}
					}
				}
				holders := map[string]int64{}
				held := map[string]int{}
				for _, r := range running {
					require.Len(rt, r.lease.Devices, r.claim.Request.Count)
					held[r.claim.Profile] += len(r.lease.Devices)
					for _, uuid := range r.lease.Devices {
						require.Zero(rt, holders[uuid], "two holders of %s", uuid)
						holders[uuid] = r.claim.Job.ID
						d, ok := inventory.find(uuid)
						require.True(rt, ok && r.claim.suits(d))
					}
				}
				require.LessOrEqual(rt, held["small"], 3)
				require.Equal(rt, len(running), len(p.Leases()))
				// The first in line waits for want of devices, or of room in its profile.
				if len(waiting) > 0 {
					w := waiting[0].claim
					free := 0
					for _, d := range inventory.Devices {
						if _, ill := p.Shelf()[d.UUID]; !ill && holders[d.UUID] == 0 && w.suits(d) {
							free++
						}
					}
					room := w.Settings.Total == 0 || held[w.Profile]+w.Request.Count <= w.Settings.Total
					require.False(rt, free >= w.Request.Count && room, "%d of %d free and job %d waits", free, w.Request.Count, w.Job.ID)
				}
			},
		})
	})
}

// TestLargeRequestsDoNotStarve has small jobs come without end.
func TestLargeRequestsDoNotStarve(t *testing.T) {
	p := NewPool("")
	p.Update(board(4))
	var small []*ticket
	for n := range 4 {
		tk, err := p.join(claim(n+1, Request{Count: 1}))
		require.NoError(t, err)
		small = append(small, tk)
	}
	large, err := p.join(claim(100, Request{Count: 4}))
	require.NoError(t, err)
	for n := range 4 {
		later, err := p.join(claim(200+n, Request{Count: 1}))
		require.NoError(t, err)
		require.False(t, called(large))
		require.True(t, p.Release(small[n].claim.Job.Key()))
		require.False(t, called(later), "it came after the large one")
	}
	require.True(t, called(large))
}

// TestOthersPass: who waits for an A100 does not keep those from an instance.
func TestOthersPass(t *testing.T) {
	i := board(2)
	slice(i, 1, 7, "1g.5gb", 5*gib)
	p := NewPool("")
	p.Update(i)
	first, err := p.join(claim(1, Request{Count: 1}))
	require.NoError(t, err)
	require.Equal(t, []string{"GPU-0"}, first.lease.Devices)
	second, err := p.join(claim(2, Request{Count: 1}))
	require.NoError(t, err)
	instance, err := p.join(claim(3, Request{Count: 2, MIGProfile: "1g.5gb"}))
	require.NoError(t, err)
	require.False(t, called(second))
	require.True(t, called(instance))
}

func TestImpossible(t *testing.T) {
	mixed := board(3)
	slice(mixed, 2, 2, "3g.20gb", 20*gib)
	cut := board(1)
	slice(cut, 0, 7, "1g.5gb", 5*gib)
	broken := board(1)
	broken.Devices[0].Unusable = "MIG is on, and it has no instances"
	for name, c := range map[string]struct {
		node    *Inventory
		request Request
		models  []string
		says    string
	}{
		"too many":          {mixed, Request{Count: 3}, nil, "the job asks for 3 × GPU, but this node has 2 × NVIDIA A100-SXM4-40GB (40GiB), 2 × NVIDIA A100-SXM4-40GB MIG 3g.20gb (20GiB): ask for what there is"},
		"no such model":     {mixed, Request{Count: 1, Model: "h100"}, nil, "asks for 1 × h100, but this node has 2 ×"},
		"a part of a word":  {mixed, Request{Count: 1, Model: "a10"}, nil, "asks for 1 × a10,"},
		"too much memory":   {mixed, Request{Count: 1, Memory: 80 * gib}, nil, "asks for 1 × GPU with at least 80GiB"},
		"no such instance":  {mixed, Request{Count: 1, MIGProfile: "1g.5gb"}, nil, "asks for 1 × MIG 1g.5gb"},
		"instances only":    {cut, Request{Count: 1}, nil, "it offers MIG instances: name their profile by BERTH_GPU_MIG_PROFILE"},
		"not in profile":    {mixed, Request{Count: 1}, []string{"h100", "l40s"}, `profile "default" allows h100, l40s`},
		"not to be had":     {broken, Request{Count: 1}, nil, "which is not to be had: MIG is on, and it has no instances"},
		"no GPU on a node":  {&Inventory{}, Request{Count: 1}, nil, "this node has no GPU"},
		"model of instance": {mixed, Request{Count: 1, Model: "H100", MIGProfile: "3g.20gb"}, nil, "asks for 1 × H100 MIG 3g.20gb"},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPool("")
			p.Update(c.node)
			wish := claim(1, c.request)
			if c.models != nil {
				wish.Settings.Models = c.models
			}
			_, err := p.Acquire(t.Context(), wish, nil)
			var build *executor.BuildFailure
			require.True(t, errors.As(err, &build), "%v", err)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestNewClaim(t *testing.T) {
	job := executor.Identity{ID: 1}
	for name, c := range map[string]struct {
		settings executor.GPUs
		count    string
		says     string
		want     int
	}{
		"none":          {anything, "", "", 0},
		"forbidden":     {executor.GPUs{}, "1", `profile "gpu" allows none`, 0},
		"none is fine":  {executor.GPUs{}, "", "", 0},
		"per job":       {executor.GPUs{Models: []string{"*"}, PerJob: 2}, "3", `3 is more than profile "gpu" allows a job: ask for 2 at most`, 0},
		"in all":        {executor.GPUs{Models: []string{"*"}, Total: 4}, "5", `more than profile "gpu" allows all of its jobs together: ask for 4`, 0},
		"by default":    {executor.GPUs{Models: []string{"*"}, Count: 2}, "", "", 2},
		"unlike others": {executor.GPUs{Models: []string{"*"}, Count: 2}, "0", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewClaim(job, "gpu", c.settings, map[string]string{CountVariable: c.count})
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			if c.want == 0 {
				require.Nil(t, got)
				return
			}
			require.Equal(t, c.want, got.Request.Count)
		})
	}
}

func TestAcquireSaysWhereAJobStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool("")
		p.Update(board(4))
		_, err := p.Acquire(t.Context(), claim(1, Request{Count: 2}), nil)
		require.NoError(t, err, "there are some: no wait, no word")
		stranger := claim(2, Request{Count: 1})
		stranger.Job.ProjectID, stranger.Job.Project = 2, "secret/project"
		_, err = p.Acquire(t.Context(), stranger, nil)
		require.NoError(t, err)
		require.NoError(t, p.Quarantine("GPU-3", Quarantine{Cause: CauseXID}))

		var lines []string
		done := make(chan error, 1)
		go func() {
			_, err := p.Acquire(t.Context(), claim(3, Request{Count: 2, Model: "a100"}), func(s string) { lines = append(lines, s) })
			done <- err
		}()
		synctest.Wait()
		require.Equal(t, []string{"Waiting for GPUs: place 1 of 1 for 2 × a100; 0 of 4 are free, 1 in quarantine: job 1 (group/project) has 2, job 2 (another project) has 1"}, lines)
		require.True(t, p.Release(stranger.Job.Key()))
		time.Sleep(progressInterval)
		synctest.Wait()
		require.Len(t, lines, 2)
		require.Contains(t, lines[1], "1 of 4 are free")
		require.True(t, p.Release(claim(1, Request{}).Job.Key()))
		require.NoError(t, <-done)

		// The profile's limit, and the end of patience.
		few := claim(4, Request{Count: 1})
		few.Settings.Total, few.Settings.Wait = 2, executor.Duration(time.Minute)
		_, err = p.Acquire(t.Context(), few, func(s string) { lines = append(lines, s) })
		require.True(t, errdefs.IsUnavailable(err))
		require.ErrorContains(t, err, `no GPUs became free in 1m0s: place 1 of 1 for 1 × GPU; profile "default" has 2 of its 2: job 3 (group/project) has 2`)
		require.Empty(t, p.waiting)
	})
}

func TestAcquireIsCalledOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("caller is gone")
		p := NewPool("")
		p.Update(board(1))
		_, err := p.Acquire(t.Context(), claim(1, Request{Count: 1}), nil)
		require.NoError(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := p.Acquire(ctx, claim(2, Request{Count: 1}), func(string) {})
			done <- err
		}()
		synctest.Wait()
		cancel(gone)
		require.ErrorIs(t, <-done, gone)
		require.True(t, p.Release(claim(1, Request{}).Job.Key()))
		_, err = p.Acquire(t.Context(), claim(3, Request{Count: 1}), nil)
		require.NoError(t, err, "the place was given up")
	})
}

// TestHotRemoval: what waits for a GPU that was taken out hears of it.
func TestHotRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool("")
		p.Update(board(2))
		_, err := p.Acquire(t.Context(), claim(1, Request{Count: 1}), nil)
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() {
			_, err := p.Acquire(t.Context(), claim(2, Request{Count: 2}), func(string) {})
			done <- err
		}()
		synctest.Wait()
		p.Update(board(1))
		require.ErrorContains(t, <-done, "but this node has 1 ×")
		l, ok := p.Lease(claim(1, Request{}).Job.Key())
		require.True(t, ok, "a lease outlives its device")
		require.Len(t, l.Devices, 1)
	})
}

func TestAdopt(t *testing.T) {
	p := NewPool("")
	require.NoError(t, p.Adopt(Lease{Job: executor.Identity{ID: 1}, Profile: "default", Devices: []string{"GPU-0", "GPU-1"}}))
	require.True(t, errdefs.IsAlreadyExists(p.Adopt(Lease{Job: executor.Identity{ID: 2}, Devices: []string{"GPU-1"}})))
	p.Update(board(2))
	tk, err := p.join(claim(3, Request{Count: 1}))
	require.NoError(t, err)
	require.False(t, called(tk))
	require.True(t, p.Release(executor.Identity{ID: 1}.Key()))
	require.True(t, called(tk))
}

// BenchmarkAllocate takes from eight GPUs, or from seven instances of each of
// eight, and gives back.
func BenchmarkAllocate(b *testing.B) {
	cut := board(8)
	for g := range 8 {
		slice(cut, g, 7, "1g.5gb", 5*gib)
	}
	for _, c := range []struct {
		name string
		node *Inventory
		r    Request
	}{
		{"1 of 8", board(8), Request{Count: 1}},
		{"4 of 8", board(8), Request{Count: 4}},
		{"8 of 16", board(16), Request{Count: 8}},
		{"1 of 56 instances", cut, Request{Count: 1, MIGProfile: "1g.5gb"}},
		{"4 of 56 instances", cut, Request{Count: 4, MIGProfile: "1g.5gb"}},
		{"28 of 56 instances", cut, Request{Count: 28, MIGProfile: "1g.5gb"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := NewPool("")
			p.Update(c.node)
			for n := 0; b.Loop(); n++ {
				l, err := p.Acquire(b.Context(), claim(n+1, c.r), nil)
				if err != nil {
					b.Fatal(err)
				}
				p.Release(l.Job.Key())
			}
		})
	}
}
