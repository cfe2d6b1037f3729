package node

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/gofrs/flock"

	"gitlab.com/berth-ci/berth/node/config"
)

func journalFile(c *config.Config) string { return filepath.Join(c.Root, "journal.db") }

// netnsDir is below state: namespaces do not outlive a boot.
func netnsDir(c *config.Config) string { return filepath.Join(c.State, "netns") }

// lock makes a directory and keeps other berthd out of it.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	l := flock.New(filepath.Join(dir, "berthd.lock"), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock directory %s: %w", dir, err)
	}
	if !ok {
		return nil, fmt.Errorf("another berthd uses %s: stop it, or give this one a root and state of its own: %w", dir, errdefs.ErrAlreadyExists)
	}
	return l.Close, nil
}

// groupID is the number of a group, root's for none.
func groupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("find group %q of the configuration: %w", name, err)
	}
	return strconv.Atoi(g.Gid)
}

// bootID tells one boot of the host from the next.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell this boot from others: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
