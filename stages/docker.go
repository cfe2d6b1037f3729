package stages

import (
	"path"
	"path/filepath"

	"gitlab.com/berth-ci/berth/container"
)

// Where containers of a job find its docker: in a directory, since a later
// berthd listens on another socket in it, and where programs look that do not
// ask DOCKER_HOST.
const (
	dockerDir    = "/run/berth"
	dockerSocket = "/var/run/docker.sock"
)

// withDocker gives a container the job's docker.
func (b *berth) withDocker(c container.Config) container.Config {
	d := b.admission.Docker
	if d == nil {
		return c
	}
	c.Mounts = append(c.Mounts,
		container.Bind(filepath.Join(d.Dir, "run"), dockerDir, "ro"),
		container.Bind(filepath.Join(d.Dir, "run", "docker.sock"), dockerSocket, "rw"),
	)
	c.Env = append(c.Env, "DOCKER_HOST=unix://"+dockerDir+"/docker.sock")
	if dir := b.certDir(); dir != "" {
		c.Mounts = append(c.Mounts, container.Bind(filepath.Join(d.Dir, "certs", "client"), path.Join(dir, "client"), "ro"))
	}
	return c
}

// defaultCertDir is where docker:dind has its certificates unless told
// otherwise.
const defaultCertDir = "/certs"

// certDir is where a job that asks for docker:dind expects certificates; empty
// where it asks for none.
func (b *berth) certDir() string {
	for i, service := range b.admission.Grant.Services {
		if !service.Docker {
			continue
		}
		for _, v := range b.payload.Services[i].Variables {
			if v.Key == certDirVariable {
				return absolute(v.Value)
			}
		}
		if b.payload.Has(certDirVariable) {
			return absolute(b.call.Variable(certDirVariable))
		}
		return defaultCertDir
	}
	return ""
}

const certDirVariable = "DOCKER_TLS_CERTDIR"

// absolute is a path that can be mounted on; others are none.
func absolute(dir string) string {
	if !path.IsAbs(dir) || path.Clean(dir) == "/" {
		return ""
	}
	return path.Clean(dir)
}
