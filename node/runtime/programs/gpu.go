package programs

import (
	"os"
	"path/filepath"
)

// GPU is what asks NVIDIA's driver.
const GPU = "berth-gpu"

// LocateGPU finds it in the directory of the runtime's programs, or near
// berth's own. Where there is none it is what should be there.
func LocateGPU(dir string) string {
	installed := filepath.Join(dir, GPU)
	self, err := os.Executable()
	if err != nil {
		return installed
	}
	for _, path := range []string{installed, filepath.Join(filepath.Dir(self), "../libexec/berth", GPU), filepath.Join(filepath.Dir(self), GPU)} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return installed
}
