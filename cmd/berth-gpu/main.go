// Command berth-gpu asks NVIDIA's driver for berthd, which starts it, and is
// what containers with GPUs run before they start. It is a program of its own
// so that nothing that happens in the driver happens to berthd.
package main

import (
	"fmt"
	"os"
)

// version is set by the linker.
var version = "development"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "berth-gpu:", err)
		os.Exit(1)
	}
}
