//go:build !cgo

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "gpudriver: it was built without cgo")
	os.Exit(1)
}
