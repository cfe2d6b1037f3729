package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/docker/ledger"
)

// createContainer is POST /containers/create.
func createContainer(c *call) (err error) {
	var body container.CreateRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Config == nil {
		return invalid("Config cannot be empty in order to create a container")
	}
	if body.HostConfig == nil {
		body.HostConfig = &container.HostConfig{}
	}
	asked, err := noted(body.HostConfig)
	if err != nil {
		return fmt.Errorf("note what was asked for: %w", err)
	}
	name := strings.TrimPrefix(c.query.Get("name"), "/")
	if name != "" && !namePattern.MatchString(name) {
		return invalid("Invalid container name (%s), only %s are allowed", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	image, err := c.used(body.Image)
	if err != nil {
		return err
	}
	record := &containerRecord{Name: name, Image: body.Image, HostConfig: asked, Sources: map[string]string{}}
	defer func() {
		if err != nil {
			c.unpin(record)
		}
	}()
	h := body.HostConfig
	privileged := c.mayBePrivileged(image)
	if err := c.checkHost(h, privileged); err != nil {
		return err
	}
	if err := c.leased(&h.Resources); err != nil {
		return err
	}
	record.Privileged = h.Privileged
	if err := checkLabels(body.Labels); err != nil {
		return err
	}
	body.Labels = c.label(body.Labels)
	body.Image = image.stored
	if err := c.join(&body, name); err != nil {
		return err
	}
	if err := c.mounts(h, record); err != nil {
		return err
	}
	if record.Bindings, err = bindingsOf(h.PortBindings); err != nil {
		return err
	}
	record.PublishAll = h.PublishAllPorts
	c.own(h, &body)

	query := url.Values{}
	if platform := c.query.Get("platform"); platform != "" {
		query.Set("platform", platform)
	}
	if name != "" {
		query.Set("name", c.inner(name))
	}
	c.finish()
	v, res, err := c.ask(http.MethodPost, "/containers/create", query, body)
	if errdefs.IsNotFound(err) && strings.Contains(err.Error(), "network "+c.job.Key) {
		// Someone has pruned the networks of the daemon.
		c.forgetNetwork()
		if _, err = c.ownNetwork(c.ctx); err == nil {
			v, res, err = c.ask(http.MethodPost, "/containers/create", query, body)
		}
	}
	if err != nil {
		return err
	}
	id := text(v, "Id")
	if !idPattern.MatchString(id) {
		return fmt.Errorf("the docker daemon made a container with id %q", id)
	}
	if err := c.register(id, record); err != nil {
		undo := context.WithoutCancel(c.ctx)
		_ = c.Engine.Call(undo, http.MethodDelete, "/containers/"+id, url.Values{"force": {"1"}, "v": {"1"}}, nil, nil) // its label tells, should it fail
		return err
	}
	return c.answer(res.StatusCode, v)
}

// noted is what of a HostConfig is told again as it was asked for.
func noted(h *container.HostConfig) (json.RawMessage, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(key string, _ json.RawMessage) bool { return !slices.Contains(askedFor, key) })
	return json.Marshal(all)
}

// register notes a new container and what dockerd made along with it.
func (c *call) register(id string, record *containerRecord) error {
	var made struct {
		Name   string
		Mounts []struct{ Type, Name string }
	}
	if err := c.Engine.Call(c.ctx, http.MethodGet, "/containers/"+id+"/json", nil, nil, &made); err != nil {
		return err
	}
	if record.Name == "" {
		record.Name = strings.TrimPrefix(c.outer(made.Name), "/")
	}
	for _, m := range made.Mounts {
		if m.Type == "volume" && m.Name != "" && !strings.HasPrefix(m.Name, c.prefix()) {
			if err := c.addVolume(m.Name); err != nil {
				return err
			}
		}
	}
	return c.addContainer(id, record)
}

func (c *call) addVolume(name string) error {
	if err := c.Ledger.Put(c.job.Key, ledger.Volume, name, struct{}{}); err != nil {
		return err
	}
	c.objects.mu.Lock()
	defer c.objects.mu.Unlock()
	c.objects.volumes[name] = true
	return nil
}

// own makes the container one of the job's: in its cgroup, with its name
// server, without anything on the node.
func (c *call) own(h *container.HostConfig, body *container.CreateRequest) {
	h.CgroupParent = c.job.Cgroup
	// The default of the host's own dockerd may be NVIDIA's, which gives GPUs
	// to whoever sets a variable.
	if h.Runtime == "" {
		h.Runtime = "runc"
	}
	h.ContainerIDFile = ""
	// Ports are the job's network namespace's.
	if len(h.PortBindings) > 0 && body.ExposedPorts == nil {
		body.ExposedPorts = network.PortSet{}
	}
	for port := range h.PortBindings {
		body.ExposedPorts[port] = struct{}{}
	}
	h.PortBindings, h.PublishAllPorts = nil, false
	if !h.NetworkMode.IsContainer() && len(h.DNS) == 0 {
		h.DNS = append(h.DNS, c.job.Network.Gateway)
		if len(h.DNSSearch) == 0 {
			h.DNSSearch = c.job.Profile.DNSSearch
		}
	}
	for i, host := range h.ExtraHosts {
		for _, sep := range []string{":", "="} {
			if rest, ok := strings.CutSuffix(host, sep+"host-gateway"); ok {
				h.ExtraHosts[i] = rest + ":" + c.job.Network.Gateway.String()
			}
		}
	}
	if h.Privileged {
		return
	}
	for _, name := range c.job.Profile.CapDrop {
		if !slices.Contains(h.CapAdd, capName(name)) {
			h.CapDrop = append(h.CapDrop, name)
		}
	}
}

// mayBePrivileged tells whether the profile lets an image run privileged. What
// a job made itself may carry any name.
func (c *call) mayBePrivileged(image found) bool {
	return image.fromRegistry && image.named != nil &&
		executor.MatchImage(c.job.Profile.DockerPrivilegedImages, image.written, image.named)
}

// join puts the container on networks of the job's and of no other.
func (c *call) join(body *container.CreateRequest, name string) error {
	h := body.HostConfig
	var endpoints map[string]*network.EndpointSettings
	if body.NetworkingConfig != nil {
		endpoints = body.NetworkingConfig.EndpointsConfig
	}
	body.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	var err error
	if h.IpcMode, err = joined(c, h.IpcMode); err != nil {
		return err
	}
	if h.PidMode, err = joined(c, h.PidMode); err != nil {
		return err
	}
	for i, from := range h.VolumesFrom {
		ref, mode, cut := strings.Cut(from, ":")
		id, err := c.another(ref)
		if err != nil {
			return err
		}
		if cut {
			id += ":" + mode
		}
		h.VolumesFrom[i] = id
	}
	links, err := c.links(h.Links)
	if err != nil {
		return err
	}
	h.Links = nil
	switch {
	case h.NetworkMode == network.NetworkHost:
		return refuse("network host: the job's own network is the default one, where it is called %s; ports that containers publish are at localhost and docker", "docker and build")
	case h.NetworkMode == network.NetworkNone:
		return nil
	case h.NetworkMode.IsContainer():
		h.NetworkMode, err = joined(c, h.NetworkMode)
		return err
	}
	mode, _, err := c.networkName(string(h.NetworkMode))
	if err != nil {
		return err
	}
	h.NetworkMode = container.NetworkMode(mode)
	body.NetworkingConfig.EndpointsConfig[mode] = endpoint(nil, name, links)
	for ref, settings := range endpoints {
		inner, _, err := c.networkName(ref)
		if err != nil {
			return err
		}
		further := []string(nil)
		if inner == mode {
			further = links
		}
		if settings != nil {
			own, err := c.links(settings.Links)
			if err != nil {
				return err
			}
			further = append(further, own...)
			if len(settings.DriverOpts) > 0 {
				return refuse("driver options of an endpoint")
			}
		}
		body.NetworkingConfig.EndpointsConfig[inner] = endpoint(settings, name, further)
	}
	return nil
}

// endpoint is what a job may say of a container's place in a network. The name
// by which the job knows the container is one by which others find it.
func endpoint(asked *network.EndpointSettings, name string, links []string) *network.EndpointSettings {
	e := &network.EndpointSettings{Links: links}
	if asked != nil {
		e.Aliases, e.MacAddress, e.GwPriority = asked.Aliases, asked.MacAddress, asked.GwPriority
		if asked.IPAMConfig != nil {
			e.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: asked.IPAMConfig.IPv4Address}
		}
	}
	if name != "" && !slices.Contains(e.Aliases, name) {
		e.Aliases = append(e.Aliases, name)
	}
	return e
}

// links are other containers by another name: NAME[:ALIAS].
func (c *call) links(links []string) ([]string, error) {
	var inner []string
	for _, link := range links {
		name, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = name
		}
		id, err := c.another(name)
		if err != nil {
			return nil, err
		}
		inner = append(inner, id+":"+strings.TrimPrefix(alias, "/"))
	}
	return inner, nil
}

// joined resolves container:NAME.
func joined[M ~string](c *call, mode M) (M, error) {
	ref, ok := strings.CutPrefix(string(mode), "container:")
	if !ok {
		return mode, nil
	}
	id, err := c.another(ref)
	return M("container:" + id), err
}

// another resolves another container that the new one is to go with. That it
// is missing is not what clients take "not found" for here: the image.
func (c *call) another(ref string) (string, error) {
	id, err := c.container(ref)
	if err != nil {
		return "", invalid("joining network namespace of container: %v", err)
	}
	return id, nil
}

// mounts translates what is mounted.
func (c *call) mounts(h *container.HostConfig, record *containerRecord) error {
	for i, spec := range h.Binds {
		translated, err := c.bind(spec, record)
		if err != nil {
			return err
		}
		h.Binds[i] = translated
	}
	for i := range h.Mounts {
		if err := c.mount(&h.Mounts[i], record); err != nil {
			return err
		}
	}
	return nil
}

// bindOptions that concern the container alone. Relabelling is for SELinux,
// which the pinned mounts have nothing to do with.
var bindOptions = []string{"ro", "rw", "nocopy", "private", "rprivate", "consistent", "cached", "delegated", "default"}

// bind translates SOURCE:TARGET[:OPTIONS], or a volume without a source.
func (c *call) bind(spec string, record *containerRecord) (string, error) {
	parts := strings.Split(spec, ":")
	if len(parts) == 1 {
		return spec, nil
	}
	if len(parts) > 3 || parts[1] == "" {
		return "", invalid("invalid volume specification: '%s'", spec)
	}
	source, target := parts[0], parts[1]
	var options []string
	if len(parts) == 3 {
		for _, option := range strings.Split(parts[2], ",") {
			switch {
			case option == "z" || option == "Z" || option == "":
			case slices.Contains(bindOptions, option):
				options = append(options, option)
			default:
				return "", refuse("mount option %s of %s", option, spec)
			}
		}
	}
	if strings.HasPrefix(source, "/") {
		pinned, readOnly, err := c.pin(source, true, record)
		if err != nil {
			return "", err
		}
		source = pinned
		if readOnly {
			options = append(slices.DeleteFunc(options, func(o string) bool { return o == "rw" || o == "ro" }), "ro")
		}
	} else {
		if !namePattern.MatchString(source) {
			return "", invalid("invalid volume specification: '%s': %q is neither a path nor the name of a volume", spec, source)
		}
		var err error
		if source, err = c.mountedVolume(source, nil); err != nil {
			return "", err
		}
	}
	translated := source + ":" + target
	if len(options) > 0 {
		translated += ":" + strings.Join(options, ",")
	}
	return translated, nil
}

// mount translates one of the longer form.
func (c *call) mount(m *mount.Mount, record *containerRecord) error {
	if m.ClusterOptions != nil {
		return refuse("volumes of a cluster")
	}
	switch m.Type {
	case mount.TypeBind:
		create := false
		if o := m.BindOptions; o != nil {
			create = o.CreateMountpoint
			switch o.Propagation {
			case "", mount.PropagationPrivate, mount.PropagationRPrivate:
			default:
				return refuse("mount propagation %s", o.Propagation)
			}
		}
		pinned, readOnly, err := c.pin(m.Source, create, record)
		if err != nil {
			return err
		}
		m.Source, m.ReadOnly = pinned, m.ReadOnly || readOnly
	case mount.TypeVolume:
		if o := m.VolumeOptions; o != nil {
			if err := checkLabels(o.Labels); err != nil {
				return err
			}
			o.Labels = c.label(o.Labels)
			if o.DriverConfig != nil {
				if err := checkVolume(o.DriverConfig.Name, o.DriverConfig.Options); err != nil {
					return err
				}
			}
		} else {
			m.VolumeOptions = &mount.VolumeOptions{Labels: c.label(nil)}
		}
		if m.Source == "" {
			return nil
		}
		var err error
		m.Source, err = c.mountedVolume(m.Source, m.VolumeOptions)
		return err
	case mount.TypeTmpfs:
	case mount.TypeImage:
		image, err := c.used(m.Source)
		if err != nil {
			return err
		}
		m.Source = image.stored
	default:
		return refuse("mounts of type %q; bind, volume, tmpfs and image are there", m.Type)
	}
	return nil
}

// text is a string in an object.
func text(v any, key string) string {
	m, _ := v.(map[string]any)
	s, _ := m[key].(string)
	return s
}
