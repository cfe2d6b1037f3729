package gpu

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxSets is how many sets of devices are compared one by one. Beyond, sets
// are grown from each device to its nearest.
const maxSets = 20_000

// pathScore weighs connections without NVLink: any NVLink is better than none.
var pathScore = [...]int{PathUnknown: 0, PathBoard: 60, PathSwitch: 50, PathSwitches: 40, PathHostBridge: 30, PathNode: 20, PathSystem: 10}

const (
	nvlinkScore = 100
	sameGPU     = 100_000
)

// topology is how well the devices of an inventory are connected.
type topology map[[2]string]int // by UUID of GPUs, smaller first

func newTopology(i *Inventory) topology {
	t := topology{}
	for _, l := range i.Links {
		t[pair(l.A, l.B)] = l.NVLinks*nvlinkScore + pathScore[min(max(l.Path, 0), PathSystem)]
	}
	return t
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (t topology) score(a, b Device) int {
	if a.GPU == b.GPU {
		return sameGPU
	}
	return t[pair(a.GPU, b.GPU)]
}

// choose picks n of the free devices: those that are connected best, then
// those nearest to the cpus, then those whose loss hurts the rest least, so
// that islands of NVLink and unused GPUs stay whole for those who need them.
func (t topology) choose(free []Device, n int, cpus cpuSet) []Device {
	if n <= 0 || n > len(free) {
		return nil
	}
	slices.SortFunc(free, func(a, b Device) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.GPUInstance, b.GPUInstance), strings.Compare(a.UUID, b.UUID))
	})
	c := &chooser{size: len(free), n: n, scores: make([][]int, len(free)), sums: make([]int, len(free)), near: make([]int, len(free))}
	for i, a := range free {
		c.scores[i] = make([]int, len(free))
		for j, b := range free {
			if i != j {
				c.scores[i][j] = t.score(a, b)
				c.sums[i] += c.scores[i][j]
			}
		}
		if cpus.near(a.CPUs) {
			c.near[i] = 1
		}
	}
	if binomial(len(free), n) <= maxSets {
		c.all(0, make([]int, 0, n), [3]int{})
	} else {
		c.grow()
	}
	chosen := make([]Device, n)
	for i, at := range c.best {
		chosen[i] = free[at]
	}
	return chosen
}

// chooser compares sets of devices, by their places.
type chooser struct {
	size, n int
	scores  [][]int
	sums    []int // of each row of scores
	near    []int

	best  []int
	value [3]int
}

// with is the value of a set, v, once one more is in it: how well they are
// connected, how many are near, and what the rest loses, negative.
func (c *chooser) with(set []int, v [3]int, one int) [3]int {
	inner, row := 0, c.scores[one]
	for _, b := range set {
		inner += row[b]
	}
	return [3]int{v[0] + inner, v[1] + c.near[one], v[2] + 2*inner - c.sums[one]}
}

// offer keeps the set if it is better than all before.
func (c *chooser) offer(set []int, value [3]int) {
	if c.best == nil || slices.Compare(value[:], c.value[:]) > 0 {
		c.best, c.value = append(c.best[:0], set...), value
	}
}

// all offers all sets that begin with set, whose value is v.
func (c *chooser) all(from int, set []int, v [3]int) {
	if len(set) == c.n {
		c.offer(set, v)
		return
	}
	for i := from; i <= c.size-(c.n-len(set)); i++ {
		c.all(i+1, append(set, i), c.with(set, v, i))
	}
}

// grow offers one set for each device: itself and, one after another, what
// is connected best with those before, or else costs the rest least.
func (c *chooser) grow() {
	for first := range c.size {
		set, in, gain := []int{first}, make([]bool, c.size), slices.Clone(c.scores[first])
		in[first] = true
		for len(set) < c.n {
			next := -1
			for i := range c.size {
				if in[i] || next >= 0 && gain[i] < gain[next] {
					continue
				}
				if next < 0 || gain[i] > gain[next] || cmp.Or(cmp.Compare(c.near[i], c.near[next]), cmp.Compare(c.sums[next], c.sums[i])) > 0 {
					next = i
				}
			}
			set, in[next] = append(set, next), true
			for i, score := range c.scores[next] {
				gain[i] += score
			}
		}
		slices.Sort(set)
		var value [3]int
		for i, one := range set {
			value = c.with(set[:i], value, one)
		}
		c.offer(set, value)
	}
}

// binomial is how many sets of k there are of n, or something large.
func binomial(n, k int) int {
	result := 1
	for i := range min(k, n-k) {
		result = result * (n - i) / (i + 1)
		if result > math.MaxInt32 {
			return math.MaxInt32
		}
	}
	return result
}

// cpuSet is a set of cpus; nil is any.
type cpuSet map[int]bool

// parseCPUs reads a list as the kernel writes it: 0-3,8.
func parseCPUs(list string) cpuSet {
	set := cpuSet{}
	for span := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, ranged := strings.Cut(span, "-")
		if !ranged {
			last = first
		}
		low, err1 := strconv.Atoi(first)
		high, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || low < 0 || high-low > 1<<16 {
			return nil
		}
		for cpu := low; cpu <= high; cpu++ {
			set[cpu] = true
		}
	}
	return set
}

// near tells whether one of a device's cpus is in the set.
func (s cpuSet) near(list string) bool {
	if s == nil || list == "" {
		return true
	}
	for cpu := range parseCPUs(list) {
		if s[cpu] {
			return true
		}
	}
	return false
}
