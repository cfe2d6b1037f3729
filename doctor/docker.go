package doctor

import (
	"context"
	"path/filepath"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/docker/engine"
	"gitlab.com/berth-ci/berth/node/docker/host"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
)

// docker looks at the daemon that answers the jobs' docker.
func (n *node) docker(ctx context.Context) []Check {
	const name = "docker"
	ctx, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	switch {
	case !n.config.Docker.Enabled:
		return nil
	case !n.config.Docker.Managed:
		return n.hostDocker(ctx)
	}
	path, err := programs.Find(n.config.Runtime.Path, programs.Dockerd)
	if err != nil {
		return []Check{warn(name, "Install Berth's runtime programs (make runtime install), or set docker.enabled = false.", "jobs run without docker: %v", err)}
	}
	if n.berthd == nil {
		return []Check{ok(name, "%s, not running, and started with berthd", path)}
	}
	e := engine.New(filepath.Join(n.config.State, "docker", "daemon", "dockerd.sock"))
	defer e.Close()
	if err := e.Serving(ctx); err != nil {
		return []Check{fail(name, "berthd starts it again by itself; if it goes on, look at "+filepath.Join(n.config.Root, "dockerd.log")+".", "%v", err)}
	}
	checks := []Check{ok(name, "%s answers", path)}
	if _, err := programs.Find(n.config.Runtime.Path, programs.DockerInit); err != nil {
		checks = append(checks, warn("docker-init", "Install Berth's runtime programs (make runtime install).", "`docker run --init` does not work: %v", err))
	}
	return checks
}

// hostDocker looks at a daemon of the host's.
func (n *node) hostDocker(ctx context.Context) []Check {
	const name = "docker"
	at := api.Containerd{Address: n.config.Runtime.Address, Namespace: n.config.Runtime.Namespace, Snapshotter: n.config.Runtime.Snapshotter}
	if n.config.Runtime.Managed {
		at.Address = filepath.Join(n.config.State, "containerd", "containerd.sock")
	}
	version, err := host.Check(ctx, n.config.Docker.Address, at)
	if err != nil {
		return []Check{fail(name, "Until then jobs run without docker. berthd looks for it again by itself.", "%v", err)}
	}
	return []Check{ok(name, "version %s answers at %s", version, n.config.Docker.Address)}
}
