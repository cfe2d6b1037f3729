package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// listContainers is GET /containers/json.
func listContainers(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	var named []*regexp.Regexp
	for _, pattern := range f.take("name") {
		r, err := regexp.Compile(pattern)
		if err != nil {
			return invalid("invalid filter 'name=[%s]'", pattern)
		}
		named = append(named, r)
	}
	for _, key := range []string{"before", "since"} {
		for _, ref := range f.take(key) {
			id, err := c.container(ref)
			if err != nil {
				return err
			}
			f.add(key, id)
		}
	}
	f.translate("ancestor", func(ref string) string {
		if image, err := c.image(ref); err == nil {
			return image.stored
		}
		return ref
	})
	f.translate("network", func(ref string) string {
		if inner, _, err := c.networkName(ref); err == nil {
			return inner
		}
		return c.inner(ref)
	})
	f.translate("volume", func(ref string) string {
		if strings.HasPrefix(ref, "/") {
			return ref
		}
		return c.volumeName(ref)
	})
	f.add("label", JobLabel+"="+c.job.Key)
	c.query = f.into(c.query)
	return c.rewritten("/containers/json", func(v any) any {
		kept := []any{}
		for _, one := range list(v) {
			m := object(one)
			record, ok := c.owns(text(m, "Id"))
			if !ok {
				continue
			}
			c.outerSummary(m, record)
			matched := len(named) == 0
			for _, name := range list(m["Names"]) {
				s, _ := name.(string)
				for _, r := range named {
					matched = matched || r.MatchString(s) || r.MatchString(strings.TrimPrefix(s, "/"))
				}
			}
			if matched {
				kept = append(kept, m)
			}
		}
		return kept
	})
}

// outerSummary rewrites a line of the list.
func (c *call) outerSummary(m map[string]any, record *containerRecord) {
	outers := []any{}
	for _, name := range list(m["Names"]) {
		s, _ := name.(string)
		outers = append(outers, c.outer(s))
	}
	m["Names"] = outers
	if record.Image != "" && !strings.HasPrefix(text(m, "Image"), "sha256:") {
		m["Image"] = record.Image
	}
	c.outerLabels(m)
	if h := object(m["HostConfig"]); h != nil {
		h["NetworkMode"] = c.outer(text(h, "NetworkMode"))
		delete(h, "Annotations")
	}
	c.outerNetworks(object(m["NetworkSettings"]))
	c.outerMounts(m, record)
	ports := []any{}
	published := c.ports.of(text(m, "Id"))
	for _, port := range list(m["Ports"]) {
		private, _ := object(port)["PrivatePort"].(json.Number)
		n, _ := private.Int64()
		if !slices.ContainsFunc(published, func(b publishedPort) bool {
			return int64(b.to.Num()) == n && string(b.to.Proto()) == text(port, "Type")
		}) {
			ports = append(ports, port)
		}
	}
	for _, b := range published {
		ports = append(ports, map[string]any{"IP": b.host(), "PrivatePort": b.to.Num(), "PublicPort": b.number, "Type": string(b.to.Proto())})
	}
	m["Ports"] = ports
}

func (c *call) outerLabels(m map[string]any) {
	if labels := object(m["Labels"]); labels != nil {
		maps.DeleteFunc(labels, func(name string, _ any) bool { return strings.HasPrefix(name, labelPrefix) })
	}
}

// outerNetworks rewrites a container's networks.
func (c *call) outerNetworks(settings map[string]any) {
	networks := object(settings["Networks"])
	if networks == nil {
		return
	}
	outers := map[string]any{}
	for name, endpoint := range networks {
		if m := object(endpoint); m != nil {
			if dns := list(m["DNSNames"]); dns != nil {
				known := []any{}
				for _, n := range dns {
					s, _ := n.(string)
					if outer := any(c.outer(s)); !slices.Contains(known, outer) {
						known = append(known, outer)
					}
				}
				m["DNSNames"] = known
			}
		}
		outers[c.outer(name)] = endpoint
	}
	settings["Networks"] = outers
}

func (c *call) outerMounts(m map[string]any, record *containerRecord) {
	for _, mounted := range list(m["Mounts"]) {
		mount := object(mounted)
		if source, ok := record.Sources[text(mount, "Source")]; ok {
			mount["Source"] = source
		}
		if name := text(mount, "Name"); name != "" {
			mount["Name"] = c.outer(name)
		}
	}
}

// askedFor are the fields of HostConfig that are not what the job asked for.
var askedFor = []string{"Binds", "Mounts", "PortBindings", "PublishAllPorts", "NetworkMode", "CgroupParent", "Dns", "DnsSearch", "ExtraHosts", "Links", "VolumesFrom", "IpcMode", "PidMode", "CapDrop"}

// inspectContainer is GET /containers/{id}/json.
func inspectContainer(c *call) error {
	id, record, err := c.theContainer()
	if err != nil {
		return err
	}
	return c.rewritten("/containers/"+id+"/json", func(v any) any {
		m := object(v)
		m["Name"] = c.outer(text(m, "Name"))
		if config := object(m["Config"]); config != nil {
			config["Image"] = record.Image
			c.outerLabels(config)
		}
		if h := object(m["HostConfig"]); h != nil {
			var asked map[string]any
			if json.Unmarshal(record.HostConfig, &asked) == nil {
				for _, key := range askedFor {
					// What dockerd fills in where nothing was asked is as good.
					if value, ok := asked[key]; ok && (key != "IpcMode" || value != "") {
						h[key] = value
					}
				}
			}
			if h["NetworkMode"] == "" || h["NetworkMode"] == "default" {
				h["NetworkMode"] = bridge
			}
		}
		settings := object(m["NetworkSettings"])
		c.outerNetworks(settings)
		if ports := object(settings["Ports"]); ports != nil {
			for _, b := range c.ports.of(id) {
				key := b.to.String()
				have, _ := ports[key].([]any)
				ports[key] = append(have, map[string]any{"HostIp": b.host(), "HostPort": b.text()})
			}
		}
		c.outerMounts(m, record)
		return v
	})
}

// onContainer passes an operation on to a container of the job's.
func onContainer(what string) func(*call) error {
	return func(c *call) error {
		id, _, err := c.theContainer()
		if err != nil {
			return err
		}
		return c.pass(c.r.Method, "/containers/"+id+what, c.query, nil)
	}
}

// startContainer is POST /containers/{id}/start, and restart.
func startContainer(what string) func(*call) error {
	return func(c *call) error {
		id, _, err := c.theContainer()
		if err != nil {
			return err
		}
		if err := c.reserve(c.ctx, id); err != nil {
			return errors.Join(err, c.removeUnstarted(id))
		}
		res, err := c.send(http.MethodPost, "/containers/"+id+what, c.query, nil)
		if err != nil {
			c.settle(context.WithoutCancel(c.ctx), id)
			return err
		}
		if err := c.started(c.ctx, id); err != nil {
			res.Body.Close()
			return err
		}
		return c.reply(res)
	}
}

// removeUnstarted removes a container that could not be started and was to be
// removed at its end, as dockerd does.
func (c *call) removeUnstarted(id string) error {
	ctx := context.WithoutCancel(c.ctx)
	var about struct{ HostConfig struct{ AutoRemove bool } }
	if err := c.Engine.Call(ctx, http.MethodGet, "/containers/"+id+"/json", nil, nil, &about); err != nil || !about.HostConfig.AutoRemove {
		return err
	}
	err := c.Engine.Call(ctx, http.MethodDelete, "/containers/"+id, url.Values{"v": {"1"}}, nil, nil)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	c.removed(id)
	return nil
}

// statistics is GET /containers/{id}/stats: a container's numbers, once or as
// they come, and its name.
func statistics(c *call) error {
	id, record, err := c.theContainer()
	if err != nil {
		return err
	}
	res, err := c.send(http.MethodGet, "/containers/"+id+"/stats", c.query, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	say := c.messages()
	d := json.NewDecoder(res.Body)
	d.UseNumber()
	for {
		var numbers map[string]any
		if err := d.Decode(&numbers); errors.Is(err, io.EOF) || c.ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("read statistics: %w", err)
		}
		if _, ok := numbers["name"]; ok {
			numbers["name"] = "/" + record.Name
		}
		say(numbers)
	}
}

// stopContainer passes on what may end a container; its ports are free when
// the answer comes.
func stopContainer(what string) func(*call) error {
	return func(c *call) error {
		id, _, err := c.theContainer()
		if err != nil {
			return err
		}
		res, err := c.send(http.MethodPost, "/containers/"+id+what, c.query, nil)
		if err != nil {
			return err
		}
		c.settle(c.ctx, id)
		return c.reply(res)
	}
}

// removeContainer is DELETE /containers/{id}.
func removeContainer(c *call) error {
	id, _, err := c.theContainer()
	if err != nil {
		return err
	}
	if c.query.Get("link") == "1" || c.query.Get("link") == "true" {
		return refuse("removal of links")
	}
	res, err := c.send(http.MethodDelete, "/containers/"+id, c.query, nil)
	if err != nil {
		if errdefs.IsNotFound(err) {
			c.removed(id)
			return missing("No such container: %s", c.params[0])
		}
		return err
	}
	c.removed(id)
	return c.reply(res)
}

// renameContainer is POST /containers/{id}/rename.
func renameContainer(c *call) error {
	id, record, err := c.theContainer()
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(c.query.Get("name"), "/")
	if !namePattern.MatchString(name) {
		return invalid("Invalid container name (%s), only %s are allowed", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	res, err := c.send(http.MethodPost, "/containers/"+id+"/rename", url.Values{"name": {c.inner(name)}}, nil)
	if err != nil {
		return err
	}
	c.unnamed(id)
	renamed := *record
	renamed.Name = name
	if err := c.addContainer(id, &renamed); err != nil {
		res.Body.Close()
		return err
	}
	c.announce(c.ctx)
	return c.reply(res)
}

// updateContainer is POST /containers/{id}/update.
func updateContainer(c *call) error {
	id, record, err := c.theContainer()
	if err != nil {
		return err
	}
	var body container.UpdateConfig
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.CgroupParent != "" {
		return refuse("another cgroup: the job's limits hold for all its containers")
	}
	if len(body.DeviceRequests) > 0 {
		return refuse("DeviceRequests: a container keeps the devices that it was made with")
	}
	if err := c.checkResources(&body.Resources, record.Privileged); err != nil {
		return err
	}
	return c.pass(http.MethodPost, "/containers/"+id+"/update", nil, body)
}

// pruneContainers is POST /containers/prune.
func pruneContainers(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	f.add("label", JobLabel+"="+c.job.Key)
	c.query = f.into(c.query)
	return c.rewritten("/containers/prune", func(v any) any {
		for _, id := range list(object(v)["ContainersDeleted"]) {
			if s, ok := id.(string); ok {
				c.removed(s)
			}
		}
		return v
	})
}

// copyIn is PUT /containers/{id}/archive.
func copyIn(c *call) error {
	id, _, err := c.theContainer()
	if err != nil {
		return err
	}
	return c.pass(http.MethodPut, "/containers/"+id+"/archive", c.query, stream{c.r.Body, "application/x-tar"})
}

// commit is POST /commit.
func commit(c *call) error {
	id, err := c.container(c.query.Get("container"))
	if err != nil {
		return err
	}
	var config container.Config
	if c.r.ContentLength != 0 {
		if err := c.decode(&config); err != nil {
			return err
		}
	}
	if err := checkLabels(config.Labels); err != nil {
		return err
	}
	query := url.Values{"container": {id}}
	for _, key := range []string{"comment", "author", "changes", "pause"} {
		if v, ok := c.query[key]; ok {
			query[key] = v
		}
	}
	c.finish()
	unnamed := c.query.Get("repo") == ""
	if unnamed {
		v, res, err := c.ask(http.MethodPost, "/commit", query, config)
		if err != nil {
			return err
		}
		if err := c.addImage(text(v, "Id")); err != nil {
			return err
		}
		if err := c.labelDangling(c.ctx, text(v, "Id")); err != nil {
			return err
		}
		return c.answer(res.StatusCode, v)
	}
	named, err := repoTag(c.query)
	if err != nil {
		return err
	}
	stored, err := c.job.Scope.Own(named)
	if err != nil {
		return err
	}
	query.Set("repo", stored)
	v, res, err := c.ask(http.MethodPost, "/commit", query, config)
	if err != nil {
		return err
	}
	if err := c.made(named, stored); err != nil {
		return err
	}
	return c.answer(res.StatusCode, v)
}

// made notes who made an image that dockerd gave a name of the job's own.
func (c *call) made(named interface{ String() string }, stored string) error {
	image, err := c.Client.ImageService().Get(c.ctx, stored)
	if err != nil {
		return err
	}
	n, err := parseAgain(named.String())
	if err != nil {
		return err
	}
	_, err = c.store(c.ctx, n, image, "")
	return err
}

// execIn is POST /containers/{id}/exec.
func execIn(c *call) error {
	id, record, err := c.theContainer()
	if err != nil {
		return err
	}
	var body container.ExecCreateRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Privileged && !record.Privileged {
		return refuse("privileged exec in a container that is not")
	}
	v, res, err := c.ask(http.MethodPost, "/containers/"+id+"/exec", nil, body)
	if err != nil {
		return err
	}
	c.objects.mu.Lock()
	c.objects.execs[text(v, "Id")] = id
	c.objects.mu.Unlock()
	return c.answer(res.StatusCode, v)
}

// exec finds an exec of the job's. Those of before a restart of berthd are
// asked for.
func (c *call) exec(id string) error {
	if !idPattern.MatchString(id) {
		return missing("No such exec instance: %s", id)
	}
	c.objects.mu.Lock()
	_, known := c.objects.execs[id]
	c.objects.mu.Unlock()
	if known {
		return nil
	}
	var about struct{ ContainerID string }
	if err := c.Engine.Call(c.ctx, http.MethodGet, "/exec/"+id+"/json", nil, nil, &about); err != nil {
		if errdefs.IsUnavailable(err) {
			return err
		}
		return missing("No such exec instance: %s", id)
	}
	if _, ok := c.owns(about.ContainerID); !ok {
		return missing("No such exec instance: %s", id)
	}
	return nil
}

func onExec(what string) func(*call) error {
	return func(c *call) error {
		if err := c.exec(c.params[0]); err != nil {
			return err
		}
		return c.pass(c.r.Method, "/exec/"+c.params[0]+what, c.query, nil)
	}
}

// protocol is a port's protocol for the kernel.
func protocol(p network.IPProtocol) string { return strings.ToLower(string(p)) }
