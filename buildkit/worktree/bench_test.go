package worktree

import (
	"fmt"
	"testing"
)

// Mounting and unmounting takes as long, however many layers there are.
func BenchmarkMount(b *testing.B) {
	for _, layers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			n := newNode(b)
			var lower []string
			for range layers {
				lower = append(lower, n.fresh("layer"))
			}
			o := n.overlay(lower...)
			for b.Loop() {
				n.mount(o)
				n.unmount(o)
			}
		})
	}
}
