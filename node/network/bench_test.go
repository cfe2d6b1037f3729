package network

import (
	"strconv"
	"testing"

	"gitlab.com/berth-ci/berth/node/network/namespace/nodetest"
)

func BenchmarkTakePrepared(b *testing.B) {
	nodetest.NeedRoot(b)
	config := testConfig(b.TempDir())
	config.Pool = 1
	p := openPool(b, config)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		awaitPool(b, p)
		b.StartTimer()
		n, err := p.Take(b.Context(), strconv.Itoa(i), "open")
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		release(b, p, n)
		b.StartTimer()
	}
}

func BenchmarkTakeUnprepared(b *testing.B) {
	nodetest.NeedRoot(b)
	p := openPool(b, testConfig(b.TempDir()))
	for i := 0; b.Loop(); i++ {
		n, err := p.Take(b.Context(), strconv.Itoa(i), "open")
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		release(b, p, n)
		b.StartTimer()
	}
}

func BenchmarkJoin(b *testing.B) {
	nodetest.NeedRoot(b)
	p := openPool(b, testConfig(b.TempDir()))
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		n, err := p.Take(b.Context(), strconv.Itoa(i), "open")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := p.Join(b.Context(), n, "s", 0); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		release(b, p, n)
		b.StartTimer()
	}
}

func BenchmarkRelease(b *testing.B) {
	nodetest.NeedRoot(b)
	p := openPool(b, testConfig(b.TempDir()))
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		n, err := p.Take(b.Context(), strconv.Itoa(i), "open")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		release(b, p, n)
	}
}
