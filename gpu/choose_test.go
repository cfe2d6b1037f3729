package gpu

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// pairs is a node of four GPUs without NVLink switch: 0-1 and 2-3 are bridged.
func pairs() *Inventory {
	i := board(4)
	for a := range 4 {
		for b := range a {
			link(i, b, a, 0, PathSystem)
		}
	}
	link(i, 0, 1, 4, PathNode)
	link(i, 2, 3, 4, PathNode)
	return i
}

func uuids(devices []Device) []string {
	var list []string
	for _, d := range devices {
		list = append(list, d.UUID)
	}
	slices.Sort(list)
	return list
}

func without(i *Inventory, gone ...string) []Device {
	return slices.DeleteFunc(slices.Clone(i.Devices), func(d Device) bool { return slices.Contains(gone, d.UUID) })
}

func TestChoose(t *testing.T) {
	cut := board(3)
	slice(cut, 0, 7, "1g.5gb", 5*gib)
	slice(cut, 1, 7, "1g.5gb", 5*gib)
	slice(cut, 2, 2, "1g.5gb", 5*gib)
	plain := board(8)
	plain.Links = nil // nothing is known
	for name, c := range map[string]struct {
		node *Inventory
		gone []string
		n    int
		cpus string
		want []string
	}{
		"a bridged pair":                {pairs(), nil, 2, "", []string{"GPU-0", "GPU-1"}},
		"the pair that is left":         {pairs(), []string{"GPU-0"}, 2, "", []string{"GPU-2", "GPU-3"}},
		"one, without parting a pair":   {pairs(), []string{"GPU-1"}, 1, "", []string{"GPU-0"}},
		"one of a pair, if need be":     {pairs(), nil, 1, "", []string{"GPU-0"}},
		"near the cpus":                 {board(8), nil, 1, "16-31", []string{"GPU-4"}},
		"near the cpus, all of them":    {board(8), nil, 3, "20", []string{"GPU-4", "GPU-5", "GPU-6"}},
		"NVLink before cpus":            {pairs(), []string{"GPU-3"}, 2, "64-80", []string{"GPU-0", "GPU-1"}},
		"in order, if nothing is known": {plain, nil, 2, "", []string{"GPU-0", "GPU-1"}},
		"all":                           {board(2), nil, 2, "", []string{"GPU-0", "GPU-1"}},
		"too many":                      {board(2), nil, 3, "", nil},
		"an instance of a GPU in use":   {cut, []string{"MIG-1-0", "MIG-1-1"}, 1, "", []string{"MIG-2-0"}},
		"instances of one GPU":          {cut, nil, 4, "", []string{"MIG-0-0", "MIG-0-1", "MIG-0-2", "MIG-0-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			var cpus cpuSet
			if c.cpus != "" {
				cpus = parseCPUs(c.cpus)
			}
			require.Equal(t, c.want, uuids(newTopology(c.node).choose(without(c.node, c.gone...), c.n, cpus)))
		})
	}
}

// TestGrowComesClose holds the greedy choice against the best one: never
// better, on boards of one kind of link as good.
func TestGrowComesClose(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(2, 8).Draw(rt, "gpus")
		node := board(n)
		same := rapid.Bool().Draw(rt, "all the same")
		for a := range n {
			for b := range a {
				if !same {
					link(node, b, a, rapid.IntRange(0, 12).Draw(rt, "links"), PathSystem)
				}
			}
		}
		k := rapid.IntRange(1, n).Draw(rt, "k")
		top := newTopology(node)
		inner := func(run func(*chooser)) int {
			c := &chooser{size: n, n: k, scores: make([][]int, n), sums: make([]int, n), near: make([]int, n)}
			for i, a := range node.Devices {
				c.scores[i] = make([]int, n)
				for j, b := range node.Devices {
					if i != j {
						c.scores[i][j] = top.score(a, b)
					}
				}
			}
			run(c)
			require.Len(rt, c.best, k)
			require.True(rt, slices.IsSorted(c.best))
			require.Len(rt, slices.Compact(slices.Clone(c.best)), k, "one twice")
			return c.value[0]
		}
		best, grown := inner(func(c *chooser) { c.all(0, nil, [3]int{}) }), inner((*chooser).grow)
		require.LessOrEqual(rt, grown, best)
		if same || k <= 2 {
			require.Equal(rt, best, grown)
		}
	})
}

func TestIsPart(t *testing.T) {
	for _, c := range []struct {
		part, name string
		want       bool
	}{
		{"a100", "NVIDIA A100-PCIE-40GB", true},
		{"A100-PCIE-40GB", "NVIDIA A100-PCIE-40GB", true},
		{"", "NVIDIA A100-PCIE-40GB", true},
		{"a10", "NVIDIA A100-PCIE-40GB", false},
		{"a10", "NVIDIA A100, NVIDIA A10", true},
		{"100", "NVIDIA A100-PCIE-40GB", false},
		{"h100 80gb", "NVIDIA H100 80GB HBM3", true},
		{"h200", "NVIDIA H200", true},
	} {
		require.Equal(t, c.want, isPart(c.part, c.name), "%q in %q", c.part, c.name)
	}
}

func TestParseCPUs(t *testing.T) {
	require.Equal(t, cpuSet{0: true, 1: true, 8: true}, parseCPUs("0-1,8\n"))
	require.Nil(t, parseCPUs("all"))
	require.True(t, cpuSet(nil).near("0-3"))
	require.True(t, cpuSet{1: true}.near(""))
	require.False(t, cpuSet{9: true}.near("0-3"))
}
