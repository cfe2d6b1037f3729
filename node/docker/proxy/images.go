package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/imagegc/lastuse"
)

// found is an image that the job sees.
type found struct {
	// stored is what dockerd knows it by: a name, or an id.
	stored string
	target digest.Digest
	// named is the job's name for it, nil where it was asked for by id, and
	// written what the job wrote.
	named   reference.Named
	written string
	// fromRegistry tells that a registry gave the image this name.
	fromRegistry bool
	record       *images.Image // nil for one without a name
}

var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{4,64}$`)

// view is what the job sees of the images: by its own names.
func (p *Proxy) view(ctx context.Context) (map[string]images.Image, error) {
	all, err := p.Client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	byStored, stored := map[string]images.Image{}, make([]string, 0, len(all))
	for _, image := range all {
		byStored[image.Name] = image
		stored = append(stored, image.Name)
	}
	view := map[string]images.Image{}
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	for name, from := range p.job.Scope.View(stored) {
		if !p.objects.hidden[name] && !strings.HasPrefix(from, dangling) {
			view[name] = byStored[from]
		}
	}
	return view, nil
}

// viewing begins to look at the images, and gives what waits for the job's
// names of them by the stored ones: dockerd is asked meanwhile.
func (c *call) viewing() func() (map[string]string, error) {
	type seen struct {
		names map[string]string
		err   error
	}
	done := make(chan seen, 1)
	go func() {
		view, err := c.view(c.ctx)
		done <- seen{outerNames(view), err}
	}()
	return func() (map[string]string, error) {
		s := <-done
		return s.names, s.err
	}
}

// dangling is the name that dockerd gives images without one.
const dangling = "moby-dangling@"

// image finds what the job calls an image: by id, name, or part of an id.
func (c *call) image(ref string) (found, error) {
	none := missing("No such image: %s", ref)
	if ref == "" {
		return found{}, invalid("no image specified")
	}
	full := strings.TrimPrefix(ref, "sha256:")
	isID := imageID.MatchString(ref)
	if isID && len(full) == 64 {
		if f, ok, err := c.imageByID(full); ok || err != nil {
			f.written = ref
			return f, err
		}
	}
	named, err := names.Parse(ref)
	if err == nil && !strings.HasPrefix(ref, "sha256:") {
		f, ok, err := c.imageByName(named)
		if ok || err != nil {
			f.written = ref
			return f, err
		}
	}
	if isID {
		if f, ok, err := c.imageByID(full); ok || err != nil {
			f.written = ref
			return f, err
		}
	}
	if err != nil {
		if strings.Contains(err.Error(), names.Domain) {
			return found{}, none
		}
		return found{}, invalid("invalid reference format: %v", err)
	}
	if named != nil {
		none = missing("No such image: %s", reference.FamiliarString(named))
	}
	return found{}, none
}

// used is image, of one that is there until the job ends.
func (c *call) used(ref string) (found, error) {
	for {
		f, err := c.image(ref)
		if err != nil {
			return f, err
		}
		all := []images.Image{}
		if f.record != nil {
			all = append(all, *f.record)
		} else {
			c.Images.Expect(c.job.Key, f.target.String())
			if all, err = c.Client.ImageService().List(c.ctx, "target.digest=="+f.target.String()); err != nil {
				return f, fmt.Errorf("look up image %s: %w", f.target, err)
			}
		}
		for _, record := range all {
			if err = c.Images.Use(c.ctx, c.job.Key, record); err != nil {
				break
			}
		}
		if errdefs.IsNotFound(err) {
			continue // another has the name now, or none
		}
		return f, err
	}
}

func (c *call) imageByName(named reference.Named) (found, bool, error) {
	if digested, ok := named.(reference.Digested); ok {
		return c.imageByDigest(named, digested.Digest())
	}
	c.objects.mu.Lock()
	hidden := c.objects.hidden[named.String()]
	c.objects.mu.Unlock()
	if hidden {
		return found{}, false, nil
	}
	for _, stored := range c.job.Scope.Candidates(named) {
		image, err := c.Client.ImageService().Get(c.ctx, stored)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return found{}, false, fmt.Errorf("look up image %s: %w", named, err)
		}
		return c.foundImage(named, image), true, nil
	}
	return found{}, false, nil
}

func (c *call) foundImage(named reference.Named, image images.Image) found {
	return found{
		stored: image.Name, target: image.Target.Digest, named: named, record: &image,
		fromRegistry: !strings.HasPrefix(image.Name, names.Domain+"/") || image.Labels[names.OriginLabel] == names.OriginRegistry,
	}
}

// imageByDigest finds REPOSITORY@DIGEST, whatever tag it is there by.
func (c *call) imageByDigest(named reference.Named, want digest.Digest) (found, bool, error) {
	view, err := c.view(c.ctx)
	if err != nil {
		return found{}, false, err
	}
	for _, name := range slices.Sorted(maps.Keys(view)) {
		have, err := reference.ParseNormalizedNamed(name)
		if err == nil && have.Name() == named.Name() && view[name].Target.Digest == want {
			return c.foundImage(named, view[name]), true, nil
		}
	}
	return found{}, false, nil
}

// imageByID finds an image that the job sees by its id, or the beginning of it.
func (c *call) imageByID(part string) (found, bool, error) {
	view, err := c.view(c.ctx)
	if err != nil {
		return found{}, false, err
	}
	ids := map[string]bool{}
	for _, image := range view {
		if strings.HasPrefix(image.Target.Digest.Encoded(), part) {
			ids[image.Target.Digest.String()] = true
		}
	}
	c.objects.mu.Lock()
	for id := range c.objects.images {
		if strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), part) {
			ids[id] = true
		}
	}
	c.objects.mu.Unlock()
	switch len(ids) {
	case 0:
		return found{}, false, nil
	case 1:
		for id := range ids {
			return found{stored: id, target: digest.Digest(id)}, true, nil
		}
	}
	return found{}, false, invalid("ambiguous reference: %s", part)
}

// addImage notes an image without a name.
func (p *Proxy) addImage(id string) error {
	if _, err := digest.Parse(id); err != nil {
		return fmt.Errorf("image %q: %w", id, err)
	}
	if err := p.Ledger.Put(p.job.Key, ledger.Image, id, struct{}{}); err != nil {
		return err
	}
	p.Images.Expect(p.job.Key, id)
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	p.objects.images[id] = true
	return nil
}

// labelDangling says on an image without a name whose it is: what the record
// of docker objects does not know of after a boot.
func (p *Proxy) labelDangling(ctx context.Context, id string) error {
	image, err := p.Client.ImageService().Get(ctx, dangling+id)
	if err == nil {
		image.Labels = p.labels(image.Labels, image.Name)
		_, err = p.Client.ImageService().Update(ctx, image, "labels")
	}
	if err != nil && !errdefs.IsNotFound(err) { // it may have a name after all
		return fmt.Errorf("label image %s: %w", id, err)
	}
	return nil
}

// labels are those of an image that the job has made, by its stored name.
func (p *Proxy) labels(other map[string]string, name string) map[string]string {
	labels := lastuse.Put(other, name, time.Now())
	labels[names.MakerLabel] = p.job.Key
	return labels
}

// store gives an image a name of the job's own.
func (p *Proxy) store(ctx context.Context, named reference.Named, image images.Image, origin string) (string, error) {
	stored, err := p.job.Scope.Own(named)
	if err != nil {
		return "", err
	}
	image.Name = stored
	image.Labels = p.labels(image.Labels, image.Name)
	delete(image.Labels, names.OriginLabel)
	if origin != "" {
		image.Labels[names.OriginLabel] = origin
	}
	p.Images.Expect(p.job.Key, stored)
	p.Images.Expect(p.job.Key, image.Target.Digest.String())
	if _, err = p.Client.ImageService().Create(ctx, image); errdefs.IsAlreadyExists(err) {
		_, err = p.Client.ImageService().Update(ctx, image)
	}
	if err != nil {
		return "", fmt.Errorf("store image %s: %w", named, err)
	}
	return stored, p.show(named)
}

// show makes a name be seen that the job has removed.
func (p *Proxy) show(named reference.Named) error {
	p.objects.mu.Lock()
	hidden := p.objects.hidden[named.String()]
	delete(p.objects.hidden, named.String())
	p.objects.mu.Unlock()
	if !hidden {
		return nil
	}
	return p.Ledger.Delete(p.job.Key, ledger.Hidden, named.String())
}

// hide takes a name that is not the job's own out of its sight.
func (p *Proxy) hide(named reference.Named) error {
	if err := p.Ledger.Put(p.job.Key, ledger.Hidden, named.String(), struct{}{}); err != nil {
		return err
	}
	p.objects.mu.Lock()
	defer p.objects.mu.Unlock()
	p.objects.hidden[named.String()] = true
	return nil
}

// listImages is GET /images/json.
func listImages(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	patterns := f.take("reference")
	if legacy := c.query.Get("filter"); legacy != "" {
		patterns = append(patterns, legacy)
	}
	for _, key := range []string{"before", "since"} {
		for _, ref := range f.take(key) {
			image, err := c.image(ref)
			if err != nil {
				return err
			}
			f.add(key, image.stored)
		}
	}
	c.query = f.into(c.query)
	c.query.Del("filter")
	viewed := c.viewing()
	return c.rewrittenBy("/images/json", func(v any) (any, error) {
		names, err := viewed()
		kept := []any{}
		for _, image := range list(v) {
			m, _ := image.(map[string]any)
			if m != nil && c.outerImage(m, names) && matches(m, patterns) {
				kept = append(kept, m)
			}
		}
		return kept, err
	})
}

// outerNames are the job's names by the stored ones.
func outerNames(view map[string]images.Image) map[string]string {
	outer := map[string]string{}
	for name, image := range view {
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			outer[image.Name] = reference.FamiliarString(named)
		}
	}
	return outer
}

// outerImage rewrites the names of an image, and tells whether the job sees it.
func (c *call) outerImage(m map[string]any, names map[string]string) bool {
	id := text(m, "Id")
	if id == "" {
		id = text(m, "ID")
	}
	tags, repositories := []any{}, map[string]bool{}
	for _, tag := range list(m["RepoTags"]) {
		s, _ := tag.(string)
		named, err := reference.ParseNormalizedNamed(s)
		if err != nil {
			continue
		}
		if outer, ok := names[named.String()]; ok {
			tags = append(tags, outer)
			if n, err := reference.ParseNormalizedNamed(outer); err == nil {
				repositories[reference.FamiliarName(n)] = true
			}
		}
	}
	c.objects.mu.Lock()
	mine := c.objects.images[id]
	c.objects.mu.Unlock()
	digests := []any{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if _, at, ok := strings.Cut(name, "@"); ok && at == id {
			digests = append(digests, names[name])
		}
	}
	for _, repository := range slices.Sorted(maps.Keys(repositories)) {
		if d := repository + "@" + id; !slices.Contains(digests, any(d)) {
			digests = append(digests, d)
		}
	}
	if len(tags) == 0 && len(digests) == 0 && !mine {
		return false
	}
	for _, manifest := range list(m["Manifests"]) {
		if data := object(object(manifest)["ImageData"]); data != nil {
			used := []any{} // not by others' containers
			for _, id := range list(data["Containers"]) {
				if s, _ := id.(string); s != "" {
					if _, own := c.owns(s); own {
						used = append(used, id)
					}
				}
			}
			data["Containers"] = used
		}
	}
	m["RepoTags"], m["RepoDigests"] = tags, digests
	delete(m, "Identity") // what was built where
	return true
}

// matches compares an image with patterns of references, and leaves it those of
// its names that match.
func matches(m map[string]any, patterns []string) bool {
	if len(patterns) == 0 {
		return true
	}
	matched := false
	for _, key := range []string{"RepoTags", "RepoDigests"} {
		kept := []any{}
		for _, tag := range list(m[key]) {
			s, _ := tag.(string)
			named, err := reference.ParseNormalizedNamed(s)
			if err == nil && slices.ContainsFunc(patterns, func(pattern string) bool {
				ok, err := reference.FamiliarMatch(pattern, named)
				return err == nil && ok
			}) {
				kept = append(kept, tag)
			}
		}
		m[key] = kept
		matched = matched || len(kept) > 0
	}
	return matched
}

// inspectImage is GET /images/{image}/json.
func inspectImage(c *call) error {
	image, err := c.image(c.params[0])
	if err != nil {
		return err
	}
	viewed := c.viewing()
	return c.rewrittenBy("/images/"+escape(image.stored)+"/json", func(v any) (any, error) {
		names, err := viewed()
		c.outerImage(object(v), names)
		return v, err
	})
}

// aboutImage passes on a question about an image.
func aboutImage(what string) func(*call) error {
	return func(c *call) error {
		image, err := c.image(c.params[0])
		if err != nil {
			return err
		}
		viewed := c.viewing()
		return c.rewrittenBy("/images/"+escape(image.stored)+"/"+what, func(v any) (any, error) {
			names, err := viewed()
			for _, layer := range list(v) { // of a history
				if m, ok := layer.(map[string]any); ok {
					tags := []any{}
					for _, tag := range list(m["Tags"]) {
						s, _ := tag.(string)
						if named, err := reference.ParseNormalizedNamed(s); err == nil && names[named.String()] != "" {
							tags = append(tags, names[named.String()])
						}
					}
					if m["Tags"] != nil {
						m["Tags"] = tags
					}
				}
			}
			return v, err
		})
	}
}

// tagImage is POST /images/{image}/tag.
func tagImage(c *call) error {
	image, err := c.used(c.params[0])
	if err != nil {
		return err
	}
	named, err := repoTag(c.query)
	if err != nil {
		return err
	}
	record, err := c.recordOf(image)
	if err != nil {
		return err
	}
	if _, err := c.store(c.ctx, named, record, ""); err != nil {
		return err
	}
	c.begin(http.StatusCreated)
	return nil
}

// recordOf is any of containerd's records of an image.
func (c *call) recordOf(image found) (images.Image, error) {
	if image.record != nil {
		return *image.record, nil
	}
	all, err := c.Client.ImageService().List(c.ctx, "target.digest=="+image.target.String())
	if err != nil {
		return images.Image{}, fmt.Errorf("look up image %s: %w", image.target, err)
	}
	if len(all) == 0 {
		return images.Image{}, missing("No such image: %s", image.target)
	}
	return images.Image{Target: all[0].Target}, nil
}

// repoTag is the name that a call gives.
func repoTag(query url.Values) (reference.Named, error) {
	name := query.Get("repo")
	if tag := query.Get("tag"); tag != "" && name != "" {
		if strings.Contains(tag, ":") {
			name += "@" + tag
		} else {
			name += ":" + tag
		}
	}
	return names.Parse(name)
}

// removeImage is DELETE /images/{image}. What is not the job's own stays on
// the node, and is gone from the job's view.
func removeImage(c *call) error {
	ref := c.params[0]
	image, err := c.image(ref)
	if err != nil {
		return err
	}
	type removed struct {
		Untagged string `json:",omitempty"`
		Deleted  string `json:",omitempty"`
	}
	answer := []removed{}
	untag := func(named reference.Named, stored string) error {
		if c.job.Scope.Owns(stored) {
			if err := c.Client.ImageService().Delete(c.ctx, stored); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("remove image %s: %w", named, err)
			}
			// The name may show through from above.
			if f, ok, err := c.imageByName(named); err != nil {
				return err
			} else if ok && !c.job.Scope.Owns(f.stored) {
				if err := c.hide(named); err != nil {
					return err
				}
			}
		} else if err := c.hide(named); err != nil {
			return err
		}
		answer = append(answer, removed{Untagged: reference.FamiliarString(named)})
		return nil
	}
	if force := c.query.Get("force"); force != "1" && force != "true" {
		if err := c.unused(image); err != nil {
			return err
		}
	}
	if image.record != nil {
		if err := untag(image.named, image.stored); err != nil {
			return err
		}
	} else {
		view, err := c.view(c.ctx)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(view)) {
			if view[name].Target.Digest != image.target {
				continue
			}
			named, err := reference.ParseNormalizedNamed(name)
			if err != nil {
				return fmt.Errorf("remove image %s: %w", name, err)
			}
			if err := untag(named, view[name].Name); err != nil {
				return err
			}
		}
	}
	if gone, err := c.forget(image.target.String()); err != nil {
		return err
	} else if gone {
		answer = append(answer, removed{Deleted: image.target.String()})
	}
	return c.answer(http.StatusOK, answer)
}

// unused refuses to remove an image that a container of the job has.
func (c *call) unused(image found) error {
	view, err := c.view(c.ctx)
	if err != nil {
		return err
	}
	others := 0
	for _, other := range view {
		if other.Target.Digest == image.target {
			others++
		}
	}
	if image.record != nil && others > 1 {
		return nil // another name is left
	}
	var containers []struct{ ID, ImageID, State string }
	if err := c.Engine.Call(c.ctx, http.MethodGet, "/containers/json", c.ownFilter(url.Values{"all": {"1"}}), nil, &containers); err != nil {
		return err
	}
	for _, made := range containers {
		if _, own := c.owns(made.ID); own && made.ImageID == image.target.String() {
			state := "stopped"
			if made.State == "running" {
				state = "running"
			}
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("conflict: unable to delete %s (must be forced) - container %s is using its referenced image %s", image.written, made.ID[:12], image.target.Encoded()[:12]) + map[string]string{"running": ": it is running", "stopped": ""}[state])
		}
	}
	return nil
}

// forget lets go of an image without a name, and tells whether the job sees no
// more of it.
func (c *call) forget(id string) (bool, error) {
	c.objects.mu.Lock()
	mine := c.objects.images[id]
	delete(c.objects.images, id)
	c.objects.mu.Unlock()
	if mine {
		if err := c.Ledger.Delete(c.job.Key, ledger.Image, id); err != nil {
			return false, err
		}
		if err := c.RemoveDangling(c.ctx, c.job.Key, id); err != nil {
			return false, err
		}
	}
	view, err := c.view(c.ctx)
	if err != nil {
		return false, err
	}
	for _, image := range view {
		if image.Target.Digest.String() == id {
			return false, nil
		}
	}
	return true, nil
}

// RemoveDangling removes dockerd's name for an image without one that a job
// made, unless another job has made the same.
func (n *Node) RemoveDangling(ctx context.Context, of, id string) error {
	jobs, err := n.Ledger.Jobs()
	if err != nil {
		return err
	}
	for _, job := range jobs {
		held := false
		err := n.Ledger.Each(job, func(kind, other string, _ json.RawMessage) error {
			held = held || job != of && kind == ledger.Image && other == id
			return nil
		})
		if held || err != nil {
			return err
		}
	}
	if err := n.Client.ImageService().Delete(ctx, dangling+id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// pruneImages is POST /images/prune: what this job has made and nothing uses.
func pruneImages(c *call) error {
	f, err := filtersOf(c.query)
	if err != nil {
		return err
	}
	all := slices.ContainsFunc(f.take("dangling"), func(v string) bool { return v == "false" || v == "0" })
	type removed struct {
		Untagged string `json:",omitempty"`
		Deleted  string `json:",omitempty"`
	}
	answer := struct {
		ImagesDeleted  []removed
		SpaceReclaimed uint64
	}{}
	c.objects.mu.Lock()
	ids := slices.Collect(maps.Keys(c.objects.images))
	c.objects.mu.Unlock()
	for _, id := range ids {
		if c.unused(found{target: digest.Digest(id)}) != nil {
			continue
		}
		if gone, err := c.forget(id); err != nil {
			return err
		} else if gone {
			answer.ImagesDeleted = append(answer.ImagesDeleted, removed{Deleted: id})
		}
	}
	if all {
		view, err := c.view(c.ctx)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(view)) {
			image := view[name]
			if image.Labels[names.MakerLabel] != c.job.Key || !c.job.Scope.Owns(image.Name) || c.unused(found{target: image.Target.Digest}) != nil {
				continue
			}
			if err := c.Client.ImageService().Delete(c.ctx, image.Name); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("remove image %s: %w", name, err)
			}
			named, err := reference.ParseNormalizedNamed(name)
			if err == nil {
				answer.ImagesDeleted = append(answer.ImagesDeleted, removed{Untagged: reference.FamiliarString(named)})
			}
		}
	}
	return c.answer(http.StatusOK, answer)
}
