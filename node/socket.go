package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// socketMode lets root and the configured group in.
const socketMode = 0o660

// listen makes berthd's socket. It is bound where nobody else can reach it
// and moved into its place with mode and group set, so there is no moment in
// which others can connect; what a dead berthd left there is replaced.
func listen(path string, gid int) (_ net.Listener, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen on %s: %w", path, err)
		}
	}()
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("another process listens there: end it, or choose another socket: %w", errdefs.ErrAlreadyExists)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("there is a file that is no socket: %w", errdefs.ErrAlreadyExists)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".new") // mode 0700
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	private := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chown(private, 0, gid)
	if err == nil {
		err = os.Chmod(private, socketMode)
	}
	if err == nil {
		err = os.Rename(private, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// closeSocket leaves no socket that nobody listens on.
func closeSocket(l net.Listener, path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if closeErr := l.Close(); !errors.Is(closeErr, net.ErrClosed) { // the server closes it, too
		err = errors.Join(err, closeErr)
	}
	return err
}
