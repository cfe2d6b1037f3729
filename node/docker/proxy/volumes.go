package proxy

import (
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
)

// volumeName is what dockerd calls a volume of the job's. Those without a name
// have one that dockerd gave them.
func (p *Proxy) volumeName(name string) string {
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	if p.objects.volumes[name] {
		return name
	}
	return p.inner(name)
}

// mountedVolume notes a volume that a container is to have, and makes it if it
// is not there: as the container's mount says, if that says anything.
func (c *call) mountedVolume(name string, asked *mount.VolumeOptions) (string, error) {
	inner := c.volumeName(name)
	c.objects.mu.Lock()
	known := c.objects.volumes[inner]
	c.objects.mu.Unlock()
	if known {
		return inner, nil
	}
	// Made here, it has the job's label.
	spec := volume.CreateRequest{Name: inner, Driver: "local", Labels: c.label(nil)}
	if asked != nil {
		spec.Labels = c.label(asked.Labels)
		if asked.DriverConfig != nil {
			spec.DriverOpts = asked.DriverConfig.Options
		}
	}
	if err := c.Engine.Call(c.ctx, http.MethodPost, "/volumes/create", nil, spec, nil); err != nil {
		return "", err
	}
	return inner, c.addVolume(inner)
}

// tmpfsOption is one that a file system in memory may have. Others make of it a
// bind, or change what is mounted already.
var tmpfsOption = regexp.MustCompile(`^(size|mode|uid|gid|nr_inodes|nr_blocks)=[0-9]+[kmgtKMGT%]?$|^(|defaults|ro|rw|suid|nosuid|dev|nodev|exec|noexec|sync|async|dirsync|atime|noatime|diratime|nodiratime|relatime|norelatime|strictatime|nostrictatime)$`)

// checkTmpfs looks at the options of file systems in memory.
func checkTmpfs(all map[string]string) error {
	for target, options := range all {
		for _, o := range strings.Split(options, ",") {
			if !tmpfsOption.MatchString(o) {
				return refuse("option %q of the tmpfs at %s", o, target)
			}
		}
	}
	return nil
}

// checkVolume refuses volumes that are somewhere else than in docker's own
// directory.
func checkVolume(driver string, options map[string]string) error {
	if driver != "" && driver != "local" {
		return refuse("volume driver %s: volumes are of driver local", driver)
	}
	for name := range options {
		switch name {
		case "type", "device", "o":
		default:
			return refuse("volume option %s", name)
		}
	}
	if len(options) == 0 {
		return nil
	}
	if options["type"] != "tmpfs" || options["device"] != "tmpfs" {
		return refuse("a volume of type %q on device %q; there is tmpfs on tmpfs, and directories of the job are bound by -v PATH:TARGET", options["type"], options["device"])
	}
	for _, o := range strings.Split(options["o"], ",") {
		if !tmpfsOption.MatchString(o) {
			return refuse("volume option o=%s", o)
		}
	}
	return nil
}

// createVolume is POST /volumes/create.
func createVolume(c *call) error {
	var body volume.CreateRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.ClusterVolumeSpec != nil {
		return refuse("volumes of a cluster")
	}
	if err := checkVolume(body.Driver, body.DriverOpts); err != nil {
		return err
	}
	if err := checkLabels(body.Labels); err != nil {
		return err
	}
	body.Labels = c.label(body.Labels)
	if body.Name != "" {
		if !namePattern.MatchString(body.Name) {
			return invalid("create %s: \"%s\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed", body.Name, body.Name)
		}
		body.Name = c.volumeName(body.Name)
	}
	c.finish()
	v, res, err := c.ask(http.MethodPost, "/volumes/create", nil, body)
	if err != nil {
		return err
	}
	if err := c.addVolume(text(v, "Name")); err != nil {
		return err
	}
	c.outerVolume(object(v))
	return c.answer(res.StatusCode, v)
}

// outerVolume rewrites a volume, and tells whether the job sees it.
func (c *call) outerVolume(m map[string]any) bool {
	name := text(m, "Name")
	c.objects.mu.Lock()
	mine := c.objects.volumes[name]
	c.objects.mu.Unlock()
	if !mine {
		return false
	}
	m["Name"] = c.outer(name)
	if labels := object(m["Labels"]); labels != nil {
		c.outerLabels(m)
		if len(labels) == 0 {
			m["Labels"] = nil
		}
	}
	return true
}

// listVolumes is GET /volumes.
func listVolumes(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	named := f.take("name")
	c.query = f.into(c.query)
	return c.rewritten("/volumes", func(v any) any {
		kept := []any{}
		for _, one := range list(object(v)["Volumes"]) {
			m := object(one)
			if c.outerVolume(m) && (len(named) == 0 || slices.ContainsFunc(named, func(part string) bool {
				return strings.Contains(text(m, "Name"), part)
			})) {
				kept = append(kept, m)
			}
		}
		object(v)["Volumes"] = kept
		return v
	})
}

// aVolume resolves a volume of the job's.
func (c *call) aVolume(name string) (string, error) {
	inner := c.volumeName(name)
	c.objects.mu.Lock()
	defer c.objects.mu.Unlock()
	if !c.objects.volumes[inner] {
		return "", missing("get %s: no such volume", name)
	}
	return inner, nil
}

// inspectVolume is GET /volumes/{name}.
func inspectVolume(c *call) error {
	inner, err := c.aVolume(c.params[0])
	if err != nil {
		return err
	}
	return c.rewritten("/volumes/"+escape(inner), func(v any) any {
		c.outerVolume(object(v))
		return v
	})
}

// removeVolume is DELETE /volumes/{name}.
func removeVolume(c *call) error {
	inner, err := c.aVolume(c.params[0])
	if err != nil {
		if f := c.query.Get("force"); f == "1" || f == "true" {
			c.begin(http.StatusNoContent)
			return nil
		}
		return err
	}
	res, err := c.send(http.MethodDelete, "/volumes/"+escape(inner), c.query, nil)
	if err != nil {
		return err
	}
	if err := c.dropVolume(inner); err != nil {
		res.Body.Close()
		return err
	}
	return c.reply(res)
}

func (c *call) dropVolume(inner string) error {
	c.objects.mu.Lock()
	delete(c.objects.volumes, inner)
	c.objects.mu.Unlock()
	return c.Ledger.Delete(c.job.Key, ledger.Volume, inner)
}

// pruneVolumes is POST /volumes/prune: those without a name, or all.
func pruneVolumes(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	all := slices.ContainsFunc(f.take("all"), func(v string) bool { return v == "1" || v == "true" })
	var have volume.ListResponse
	if err := c.Engine.Call(c.ctx, http.MethodGet, "/volumes", f.into(url.Values{}), nil, &have); err != nil {
		return err
	}
	answer := struct {
		VolumesDeleted []string
		SpaceReclaimed uint64
	}{}
	for _, v := range have.Volumes {
		c.objects.mu.Lock()
		mine := c.objects.volumes[v.Name]
		c.objects.mu.Unlock()
		_, anonymous := v.Labels["com.docker.volume.anonymous"]
		if !mine || !anonymous && !all {
			continue
		}
		err := c.Engine.Call(c.ctx, http.MethodDelete, "/volumes/"+escape(v.Name), nil, nil, nil)
		if err != nil && !errdefs.IsNotFound(err) {
			continue // it is in use
		}
		if err := c.dropVolume(v.Name); err != nil {
			return err
		}
		answer.VolumesDeleted = append(answer.VolumesDeleted, c.outer(v.Name))
	}
	return c.answer(http.StatusOK, answer)
}

// volumeNames are the job's volumes on the daemon.
func (p *Proxy) volumeNames() []string {
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	return slices.Sorted(maps.Keys(p.objects.volumes))
}
