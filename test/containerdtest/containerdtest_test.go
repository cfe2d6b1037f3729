package containerdtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
)

func TestStart(t *testing.T) {
	if why := Missing(); why != "" {
		t.Skip(why)
	}
	dir := filepath.Join(t.TempDir(), "containerd")
	address, stop, err := Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)

	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx := namespaces.WithNamespace(context.Background(), "test")
	if _, err := c.Containers(ctx); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	left := filepath.Join(dir, "root", "left")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", left, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after stop, stat %s: %v", dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("mounts left below %s", dir)
	}
}
