package agent

import (
	"errors"
	"os"
)

// shells are tried in the order in which gitlab-runner's docker executor
// tries them: bash wherever it is, then any POSIX shell.
var shells = []string{
	"/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash",
	"/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh", "/busybox/sh",
}

var errNoShell = errors.New("the image has neither bash nor sh, so no script can run in it: use an image with a shell")

func findShell() (string, error) {
	for _, path := range shells {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", errNoShell
}
