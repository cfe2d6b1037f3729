package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// info is GET /info: of the daemon's numbers, those of the job.
func info(c *call) error {
	var containers []struct{ ID, State string }
	if err := c.Engine.Call(c.ctx, http.MethodGet, "/containers/json", c.ownFilter(url.Values{"all": {"1"}}), nil, &containers); err != nil {
		return err
	}
	states := map[string]int{}
	for _, made := range containers {
		if _, ok := c.owns(made.ID); ok {
			states[made.State]++
			states["all"]++
		}
	}
	view, err := c.view(c.ctx)
	if err != nil {
		return err
	}
	return c.rewritten("/info", func(v any) any {
		m := object(v)
		m["Containers"], m["ContainersRunning"], m["ContainersPaused"] = states["all"], states["running"], states["paused"]
		m["ContainersStopped"] = states["all"] - states["running"] - states["paused"]
		m["Images"] = len(view)
		m["Labels"] = []any{}
		m["Warnings"] = nil
		delete(m, "Containerd")
		delete(m, "DefaultAddressPools")
		return v
	})
}

// diskUsage is GET /system/df.
func diskUsage(c *call) error {
	viewed := c.viewing()
	return c.rewrittenBy("/system/df", func(v any) (any, error) {
		names, err := viewed()
		m := object(v)
		keep := map[string]func(map[string]any) bool{
			"Images": func(i map[string]any) bool { return c.outerImage(i, names) },
			"Containers": func(i map[string]any) bool {
				record, ok := c.owns(text(i, "Id"))
				if ok {
					c.outerSummary(i, record)
				}
				return ok
			},
			"Volumes":    c.outerVolume,
			"BuildCache": func(map[string]any) bool { return false },
		}
		sift := func(items any, keep func(map[string]any) bool) []any {
			kept := []any{}
			for _, item := range list(items) {
				if i := object(item); i != nil && keep(i) {
					kept = append(kept, i)
				}
			}
			return kept
		}
		for key, f := range keep {
			if items, ok := m[key]; ok {
				m[key] = sift(items, f)
			}
		}
		if _, ok := m["LayersSize"]; ok {
			m["LayersSize"] = 0
		}
		for key, f := range map[string]func(map[string]any) bool{
			"ImageUsage": keep["Images"], "ContainerUsage": keep["Containers"], "VolumeUsage": keep["Volumes"], "BuildCacheUsage": keep["BuildCache"],
		} {
			// Totals are the node's: of what the job has, the number alone.
			if usage := object(m[key]); usage != nil {
				kept := sift(usage["Items"], f)
				m[key] = map[string]any{"TotalCount": len(kept), "ActiveCount": len(kept), "Reclaimable": 0, "TotalSize": size(kept), "Items": kept}
			}
		}
		return v, err
	})
}

// size adds up what is told of sizes.
func size(items []any) (sum int64) {
	for _, item := range items {
		for _, key := range []string{"Size", "SizeRw"} {
			if n, ok := object(item)[key].(json.Number); ok {
				value, _ := n.Int64() // of dockerd's
				sum += value
			}
		}
	}
	return sum
}

// events is GET /events: those of the job's own objects.
func events(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	f.translate("container", func(ref string) string {
		if id, err := c.container(ref); err == nil {
			return id
		}
		return c.inner(ref)
	})
	f.translate("image", func(ref string) string {
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
	f.translate("volume", c.volumeName)
	res, err := c.send(http.MethodGet, "/events", f.into(c.query), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	c.headers(res.Header)
	c.begin(http.StatusOK)
	control := http.NewResponseController(c.w)
	if err := control.Flush(); err != nil {
		return err
	}
	d, e := json.NewDecoder(res.Body), json.NewEncoder(c.w)
	d.UseNumber()
	for {
		var event map[string]any
		if err := d.Decode(&event); errors.Is(err, io.EOF) || c.ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if !c.outerEvent(event) {
			continue
		}
		if err := e.Encode(event); err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
	}
}

// outerEvent rewrites an event, and tells whether it is of the job's own.
func (c *call) outerEvent(event map[string]any) bool {
	actor := object(event["Actor"])
	attributes := object(actor["Attributes"])
	id := text(actor, "ID")
	if id == "" {
		id = text(event, "id")
	}
	switch text(event, "Type") {
	case "container":
		record, ok := c.owns(id)
		if !ok && text(attributes, JobLabel) != c.job.Key {
			return false
		}
		if name := text(attributes, "name"); name != "" {
			attributes["name"] = c.outer(name)
		}
		if ok && text(attributes, "image") != "" {
			attributes["image"] = record.Image
		} else {
			attributes["image"] = c.outerText(text(attributes, "image"))
		}
		if from := text(event, "from"); from != "" {
			event["from"] = attributes["image"]
		}
		for key := range attributes {
			if strings.HasPrefix(key, labelPrefix) {
				delete(attributes, key)
			}
		}
		return true
	case "network":
		if other := text(attributes, "container"); other != "" {
			if _, ok := c.owns(other); !ok {
				return false
			}
		} else if name := text(attributes, "name"); name != c.job.Key && !strings.HasPrefix(name, c.prefix()) {
			return false
		}
		attributes["name"] = c.outer(text(attributes, "name"))
		return true
	case "volume":
		if !slices.Contains(c.volumeNames(), id) && !strings.HasPrefix(id, c.prefix()) {
			return false
		}
		actor["ID"] = c.outer(id)
		if text(event, "id") != "" {
			event["id"] = actor["ID"]
		}
		if other := text(attributes, "container"); other != "" {
			if _, ok := c.owns(other); !ok {
				return false
			}
		}
		return true
	case "image":
		named, _, ok := c.job.Scope.Sees(text(attributes, "name"))
		if !ok || !c.job.Scope.Owns(named.String()) && !c.job.Scope.Owns(text(attributes, "name")) {
			return false
		}
		attributes["name"] = reference.FamiliarString(named)
		for key := range attributes {
			if strings.HasPrefix(key, labelPrefix) {
				delete(attributes, key)
			}
		}
		return true
	}
	return false
}

// notSwarm is what dockerd says where it is in no swarm.
func notSwarm(*call) error {
	return errdefs.ErrUnavailable.WithMessage("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
}

// noPlugin is what dockerd says of a plugin that there is not.
func noPlugin(c *call) error { return missing("plugin %q not found", c.params[0]) }

func no(what string) func(*call) error {
	return func(*call) error { return refuse("%s", what) }
}

func nothing(v any) func(*call) error {
	return func(c *call) error { return c.answer(http.StatusOK, v) }
}

// through passes a call on that concerns no job's objects.
func through(c *call) error { return c.pass(c.r.Method, c.path, c.query, nil) }

// build hands a call to BuildKit.
func build(c *call) error {
	if c.path == "/build/prune" {
		// The caches are the project's, and kept within bounds by the node.
		return c.answer(http.StatusOK, map[string]any{"CachesDeleted": []string{}, "SpaceReclaimed": 0})
	}
	if c.path == "/build/cancel" {
		return refuse("to cancel a build by its id: end the client that waits for it")
	}
	if c.builds == nil {
		return errdefs.ErrUnavailable.WithMessage("builds are not available on this node: its cache engine is not in service")
	}
	r := c.r.Clone(c.ctx)
	r.URL.Path, r.URL.RawPath = c.path, ""
	c.begun = true
	c.builds.ServeHTTP(c.w, r)
	return nil
}
