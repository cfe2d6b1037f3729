// Package nvml is a gpu.Driver that asks NVIDIA's own libraries: NVML, and
// nvcdi for what a container needs. It needs cgo and runs in the process of
// berth-gpu alone.
//
// It reads. It never changes a setting of a GPU, nor makes or removes MIG
// instances: that is the operator's business. It may have the driver's own
// program make device nodes that a boot has left out.
package nvml

// Options say where the driver is.
type Options struct {
	// Root is where the driver's files are: / unless the driver is in a
	// container of its own.
	Root string
	// Hook is the program that containers run before they start, with the
	// commands of NVIDIA's nvidia-cdi-hook.
	Hook string
}
