package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Programs of a managed runtime.
var Programs = []string{"containerd", "containerd-shim-runc-v2", "runc"}

// Locate finds the Programs, in this order, in dir or else on the PATH.
func Locate(dir string) ([]string, error) {
	paths := make([]string, len(Programs))
	for i, name := range Programs {
		path := filepath.Join(dir, name)
		s, err := os.Stat(path)
		if err != nil || !s.Mode().IsRegular() || s.Mode()&0o111 == 0 {
			if path, err = exec.LookPath(name); err != nil {
				return nil, fmt.Errorf("find %s: it is neither in %s (runtime.path) nor on the PATH: install Berth's runtime programs there, or set runtime.managed = false to use the host's containerd", name, dir)
			}
		}
		if paths[i], err = filepath.Abs(path); err != nil {
			return nil, err
		}
	}
	return paths, nil
}
