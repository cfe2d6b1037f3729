// Package images makes the container images that tests, benchmarks and the
// demo run, and serves them from a registry of its own. They are put together
// from programs of this machine, busybox and git above all, in about a second
// and without a network.
//
// They are no images to build on: libraries are as old as this machine's.
package images

import (
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Names of the images in the registry.
const (
	// Busybox has busybox's programs alone.
	Busybox = "busybox"
	// Git has bash, git and git-lfs besides; it serves as helper image.
	Git = "git"
	// User runs as a user of its /etc/passwd, app, who is 1000:1000.
	User = "user"
	// NumericUser runs as 1234:1234, who has no entry in /etc/passwd.
	NumericUser = "numeric-user"
	// Entrypoint has an entrypoint that exports FROM_ENTRYPOINT and then runs
	// what it is given.
	Entrypoint = "entrypoint"
	// DeafEntrypoint has an entrypoint that does something else and ends.
	DeafEntrypoint = "deaf-entrypoint"
	// NoShell has a program, /hello, but no shell.
	NoShell = "no-shell"
	// Web is a service: it serves what is in GREETING over HTTP on PORT, or
	// 8080, which it exposes.
	Web = "web"
	// Silent is a service that exposes a port and never listens on it.
	Silent = "silent"
	// Quitter is a service that exposes a port and ends at once.
	Quitter = "quitter"
)

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// all makes all images.
func all() (map[string]v1.Image, error) {
	basis, err := busyboxTree()
	if err != nil {
		return nil, err
	}
	tools, err := gitTree()
	if err != nil {
		return nil, err
	}
	images := map[string]v1.Image{}
	busybox, err := image(empty.Image, basis, v1.Config{Env: []string{path}, Cmd: []string{"sh"}})
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", Busybox, err)
	}
	images[Busybox] = busybox
	for name, make := range map[string]struct {
		from   v1.Image
		add    tree
		config v1.Config
	}{
		Git:         {busybox, tools, v1.Config{Cmd: []string{"bash"}}},
		User:        {busybox, users(), v1.Config{User: "app", WorkingDir: "/home/app"}},
		NumericUser: {busybox, nil, v1.Config{User: "1234:1234"}},
		Entrypoint: {busybox, script("/entrypoint", `export FROM_ENTRYPOINT="yes, $GREETING"
echo "The entrypoint speaks."
exec "$@"
`), v1.Config{Entrypoint: []string{"/entrypoint"}}},
		DeafEntrypoint: {busybox, script("/entrypoint", "echo \"I run nothing.\"\n"), v1.Config{Entrypoint: []string{"/entrypoint"}}},
		NoShell:        {empty.Image, tree{"/hello": basis["/bin/busybox"]}, v1.Config{Cmd: []string{"/hello"}}},
		Web: {busybox, script("/serve", `mkdir -p /srv
echo "$GREETING" >/srv/index.html
echo "Serving $GREETING"
exec httpd -f -vv -p "${PORT:-8080}" -h /srv
`), v1.Config{Cmd: []string{"/serve"}, ExposedPorts: ports}},
		Silent: {busybox, script("/serve", "echo \"Not listening.\"\nexec tail -f /dev/null\n"),
			v1.Config{Cmd: []string{"/serve"}, ExposedPorts: ports}},
		Quitter: {busybox, script("/serve", "echo \"Cannot find my configuration.\"\nexit 3\n"),
			v1.Config{Cmd: []string{"/serve"}, ExposedPorts: ports}},
	} {
		if images[name], err = image(make.from, make.add, make.config); err != nil {
			return nil, fmt.Errorf("make image %s: %w", name, err)
		}
	}
	return images, nil
}

var ports = map[string]struct{}{"8080/tcp": {}}

// users adds app to the users.
func users() tree {
	t := accounts("app:x:1000:1000::/home/app:/bin/sh\n", "app:x:1000:\n")
	t["/home"] = directory(0o755)
	t["/home/app"] = entry{mode: modeDir | 0o750, uid: 1000, gid: 1000}
	return t
}

// image adds a layer, unless it is empty, and settings to another image.
func image(from v1.Image, add tree, config v1.Config) (v1.Image, error) {
	img := mutate.MediaType(from, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if len(add) > 0 {
		layer, err := add.layer()
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", architecture
	if config.Env == nil {
		config.Env = file.Config.Env
	}
	if config.Cmd == nil && config.Entrypoint == nil {
		config.Cmd = file.Config.Cmd
	}
	file.Config = config
	return mutate.ConfigFile(img, file)
}
