//go:build !cgo

package main

import "errors"

// hook fails: NVIDIA's own code for it needs cgo.
func hook([]string) error { return errors.New("it was built without cgo, and has no hooks") }
