package images

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestSame(t *testing.T) {
	first, err := all()
	require.NoError(t, err)
	second, err := all()
	require.NoError(t, err)
	for name, image := range first {
		a, err := image.Digest()
		require.NoError(t, err)
		b, err := second[name].Digest()
		require.NoError(t, err)
		require.Equal(t, a, b, name)
	}
}

func TestPrivate(t *testing.T) {
	r, err := Serve(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	get := func(login bool) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.PrivateAddress+"/v2/", nil)
		require.NoError(t, err)
		if login {
			req.SetBasicAuth(Username, Password)
		}
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		return res.StatusCode
	}
	require.Equal(t, http.StatusUnauthorized, get(false))
	require.Equal(t, http.StatusOK, get(true))
}

// TestGit runs the programs of the image with nothing of the host around.
func TestGit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to change the root directory")
	}
	r, err := Serve(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	tag, err := name.NewTag(r.Image(Git), name.Insecure)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	root := t.TempDir()
	content := mutate.Extract(img)
	defer content.Close()
	untar := exec.CommandContext(t.Context(), "tar", "-x", "-C", root)
	untar.Stdin = content
	out, err := untar.CombinedOutput()
	require.NoError(t, err, string(out))
	_, err = io.Copy(io.Discard, content)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(root, "dev"), 0o755))
	for device, minor := range map[string]uint32{"null": 3, "urandom": 9} {
		require.NoError(t, unix.Mknod(filepath.Join(root, "dev", device), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))))
	}

	cmd := exec.CommandContext(t.Context(), "/usr/bin/env", "bash", "-ec", `
		git init -q /repo; cd /repo
		echo content >file; git add file
		git -c user.name=a -c user.email=a@b commit -qm message
		git submodule status
		git lfs version
		git ls-remote http://127.0.0.1:9/ 2>&1 | grep -i 'failed to connect\|couldn.t connect'`)
	cmd.Env, cmd.Dir = []string{path, "HOME=/root"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}
