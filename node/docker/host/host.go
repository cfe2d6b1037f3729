// Package host tells whether a dockerd that the host runs itself can answer
// the jobs' docker: whether what it makes is on the containerd that jobs run
// in, and can be in a job's cgroup. It changes nothing of it.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker/engine"
)

// leastMajor is the oldest Engine whose API Berth speaks, and whose images
// are in containerd unless told otherwise.
const leastMajor = 29

// daemonFile is where a host's dockerd has its settings.
const daemonFile = "/etc/docker/daemon.json"

// Check makes sure that the dockerd at a socket is one for jobs in a
// containerd, and tells its version.
func Check(ctx context.Context, socket string, at api.Containerd) (version string, err error) {
	e := engine.New(socket)
	defer e.Close()
	if version, err = check(ctx, e, at); err != nil {
		return version, fmt.Errorf("use dockerd at %s: %w", socket, err)
	}
	return version, nil
}

func check(ctx context.Context, e *engine.Engine, at api.Containerd) (string, error) {
	if err := e.Serving(ctx); err != nil {
		return "", unreachable(err)
	}
	var v struct{ Version string }
	if err := e.Call(ctx, http.MethodGet, "/version", nil, nil, &v); err != nil {
		// What is older than the API of berthd's calls says so here.
		return "", fmt.Errorf("ask for its version: %w: install Docker Engine %d or newer, or set docker.managed = true", err, leastMajor)
	}
	if major, ok := majorOf(v.Version); ok && major < leastMajor {
		return v.Version, fmt.Errorf("it is version %s: install Docker Engine %d or newer, or set docker.managed = true: %w", v.Version, leastMajor, errdefs.ErrFailedPrecondition)
	}
	var i info
	if err := about(ctx, e, &i); err != nil {
		return v.Version, fmt.Errorf("ask how it is set up: %w", err)
	}
	if err := i.check(at); err != nil {
		return v.Version, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return v.Version, nil
}

// info is what counts of a dockerd's settings.
type info struct {
	Driver       string
	DriverStatus [][2]string
	CgroupDriver string
	Containerd   *struct {
		Address    string
		Namespaces struct{ Containers string }
	}
}

// about asks without a version: the one of berthd's own calls does not tell of
// containerd.
func about(ctx context.Context, e *engine.Engine, i *info) error {
	r, err := engine.Request(ctx, http.MethodGet, "/info", nil, nil)
	if err != nil {
		return err
	}
	res, err := e.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return engine.Failure(res)
	}
	return engine.Decode(res, i, false)
}

func (i info) check(at api.Containerd) error {
	switch {
	case !slices.Contains(i.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"}):
		return fmt.Errorf(`it keeps images in its own store (%s), where jobs do not find them: set "features": {"containerd-snapshotter": true} in %s and restart it`, i.Driver, daemonFile)
	case i.Containerd == nil || !same(i.Containerd.Address, at.Address):
		its := "one of its own"
		if i.Containerd != nil {
			its = i.Containerd.Address
		}
		return fmt.Errorf(`it works on another containerd (%s) than jobs (%s): name its socket in runtime.address, with runtime.managed = false, or set "containerd": %q in %s and restart it`, its, at.Address, at.Address, daemonFile)
	case i.Containerd.Namespaces.Containers != at.Namespace:
		return fmt.Errorf(`it works in namespace %q of containerd, and jobs in %q: set "containerd-namespace": %q in %s and restart it`, i.Containerd.Namespaces.Containers, at.Namespace, at.Namespace, daemonFile)
	case i.Driver != at.Snapshotter:
		return fmt.Errorf(`it uses the snapshotter %s, and jobs %s: name the one in runtime.snapshotter that is in "storage-driver" of %s`, i.Driver, at.Snapshotter, daemonFile)
	case i.CgroupDriver != "cgroupfs":
		return fmt.Errorf(`its cgroup driver is %s, which cannot put containers into a job's cgroup: set "exec-opts": ["native.cgroupdriver=cgroupfs"] in %s and restart it`, i.CgroupDriver, daemonFile)
	}
	return nil
}

// same tells whether two paths are of one socket.
func same(a, b string) bool {
	a, b = strings.TrimPrefix(a, "unix://"), strings.TrimPrefix(b, "unix://")
	one, err := os.Stat(a)
	if err != nil {
		return a == b
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// unreachable adds what to do to the reason why dockerd does not answer.
func unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: start it, name its socket in docker.address, or set docker.managed = true", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: the socket is left over and nobody listens: start dockerd", err)
	}
	return fmt.Errorf("%w: is it dockerd that listens there?", err)
}

// majorOf reads the major number of 29.8.1. Builds from a checkout may have
// none.
func majorOf(version string) (int, bool) {
	number, _, _ := strings.Cut(version, ".")
	major, err := strconv.Atoi(number)
	return major, err == nil
}
