package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"

	"gitlab.com/berth-ci/berth/node/api"
)

// leastMajor is the oldest containerd with the API that Berth needs.
const leastMajor = 2

// serving returns nil if containerd answers.
func serving(ctx context.Context, address string) (err error) {
	// gRPC would wait a second before it tries again.
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return err
	}
	conn.Close()
	c, err := client.New(address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ok, err := c.IsServing(ctx)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("it answers but does not serve: %w", errdefs.ErrUnavailable)
	}
	return nil
}

// check makes sure that a containerd can run jobs, and tells its version.
func check(ctx context.Context, at api.Containerd) (version string, err error) {
	if err := serving(ctx, at.Address); err != nil {
		return "", unreachable(err)
	}
	c, err := client.New(at.Address)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	v, err := c.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("ask for its version: %w", err)
	}
	if major, ok := majorOf(v.Version); ok && major < leastMajor {
		return "", fmt.Errorf("it is version %s: install %d.0 or newer, or set runtime.managed = true: %w", v.Version, leastMajor, errdefs.ErrFailedPrecondition)
	}
	return v.Version, hasSnapshotter(ctx, c, at.Snapshotter)
}

// unreachable adds what to do to the reason why containerd does not answer.
func unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: start it, name its socket in runtime.address, or set runtime.managed = true", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: the socket is left over and nobody listens: start containerd", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: berthd has to run as root", err)
	}
	return fmt.Errorf("%w: is it containerd that listens there?", err)
}

// majorOf reads the major number of v2.4.2 or 2.0.0~rc1. Builds from a
// checkout may have none.
func majorOf(version string) (int, bool) {
	number, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	major, err := strconv.Atoi(number)
	return major, err == nil
}

// hasSnapshotter finds out whether containerd could load the snapshotter.
func hasSnapshotter(ctx context.Context, c *client.Client, name string) error {
	plugins, err := c.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return fmt.Errorf("ask for its snapshotters: %w", err)
	}
	var loaded []string
	for _, p := range plugins.Plugins {
		switch {
		case p.ID == name && p.InitErr != nil:
			return fmt.Errorf("its snapshotter %s does not work here: %w", name, status.ErrorProto(p.InitErr))
		case p.ID == name:
			return nil
		case p.InitErr == nil:
			loaded = append(loaded, p.ID)
		}
	}
	return fmt.Errorf("it has no snapshotter %q but %s: change runtime.snapshotter: %w", name, strings.Join(loaded, ", "), errdefs.ErrNotFound)
}
