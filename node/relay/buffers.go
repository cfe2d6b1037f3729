package relay

import "sync"

const (
	// largeBuffer is for each direction of a stream while something passes.
	largeBuffer = 128 << 10
	// smallBuffer is for those of a job that has as many large ones under way
	// as it may have, since its clients do not read.
	smallBuffer = 4 << 10
	maxLarge    = 32
)

var (
	large = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	small = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
)

// buffers are those of a job: what it can make the relay hold is bounded, and
// another job's streams are none the slower.
type buffers struct{ large chan struct{} }

func newBuffers() *buffers { return &buffers{large: make(chan struct{}, maxLarge)} }

// take gives a buffer, and what to call when it is no longer needed.
func (b *buffers) take() ([]byte, func()) {
	select {
	case b.large <- struct{}{}:
		buffer := large.Get().(*[largeBuffer]byte)
		return buffer[:], func() { large.Put(buffer); <-b.large }
	default:
		buffer := small.Get().(*[smallBuffer]byte)
		return buffer[:], func() { small.Put(buffer) }
	}
}
