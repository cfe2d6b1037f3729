package builds

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ociexporter "github.com/moby/buildkit/exporter/oci"
	"github.com/moby/buildkit/session"
)

// exporterMoby is how buildx names dockerd's own.
const exporterMoby = "moby"

type exporterOf = exporter.Exporter

// plainExporter is one that puts out to the client.
func (w *jobWorker) plainExporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	var variant ociexporter.ExporterVariant = ociexporter.VariantOCI
	switch name {
	case client.ExporterDocker:
		variant = ociexporter.VariantDocker
	case client.ExporterOCI:
	default:
		return w.Worker.Exporter(name, sm)
	}
	return ociexporter.New(ociexporter.Opt{
		SessionManager: sm, ImageWriter: w.service.writer, Variant: variant, LeaseManager: w.LeaseManager(),
	})
}

func (w *jobWorker) imageExporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	e, err := imageexporter.New(imageexporter.Opt{
		SessionManager: sm, ImageWriter: w.service.writer, Images: w.images, RegistryHosts: w.service.hosts,
		LeaseManager: w.LeaseManager(),
	})
	if err != nil {
		return nil, fmt.Errorf("make image exporter: %w", err)
	}
	if name == exporterMoby {
		return mobyExporter{checked{e, w.registries}, w.ContentStore()}, nil
	}
	return checked{e, w.registries}, nil
}

// unsafe are options that go around what keeps a build from the node.
func unsafe(attrs map[string]string) error {
	if v, ok := attrs[string(exptypes.OptKeyInsecure)]; ok {
		if no, err := strconv.ParseBool(v); err != nil || no {
			return fmt.Errorf("%s is refused: an operator names registries without TLS in the configuration: %w", exptypes.OptKeyInsecure, errdefs.ErrPermissionDenied)
		}
	}
	for k := range attrs {
		if strings.HasPrefix(k, "unsafe-internal") {
			return fmt.Errorf("option %s is refused: %w", k, errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

type checked struct {
	exporter.Exporter
	registries *registries
}

func (c checked) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	if err := unsafe(attrs); err != nil {
		return nil, err
	}
	// What lands on the node is there to be run.
	if _, said := attrs[string(exptypes.OptKeyUnpack)]; !said && attrs[string(exptypes.OptKeyStore)] != "false" {
		if attrs = maps.Clone(attrs); attrs == nil {
			attrs = map[string]string{}
		}
		attrs[string(exptypes.OptKeyUnpack)] = "true"
	}
	inst, err := c.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return pushing{inst, c.registries}, nil
}

// pushing is an export that may push, as the job.
type pushing struct {
	exporter.ExporterInstance
	registries *registries
}

func (p pushing) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	as := func(ctx context.Context) context.Context {
		return p.registries.with(ctx, session.NewGroup(info.SessionID))
	}
	resp, finalize, desc, err := p.ExporterInstance.Export(as(ctx), src, info)
	if finalize != nil {
		push := finalize
		finalize = func(ctx context.Context) error { return push(as(ctx)) }
	}
	return resp, finalize, desc, err
}

// mobyExporter puts images where docker finds them, as dockerd's own does.
type mobyExporter struct {
	exporter.Exporter
	content content.Store
}

func (e mobyExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	attrs = maps.Clone(attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	names, err := normalize(attrs[string(exptypes.OptKeyName)])
	if err != nil {
		return nil, err
	}
	attrs[string(exptypes.OptKeyName)] = names
	for k, v := range map[exptypes.ImageExporterOptKey]string{
		exptypes.OptKeyUnpack: "true", exptypes.OptKeyDanglingPrefix: "moby-dangling",
	} {
		if _, ok := attrs[string(k)]; !ok {
			attrs[string(k)] = v
		}
	}
	attrs[string(exptypes.OptKeyDanglingEmptyOnly)] = "true"
	inst, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return mobyInstance{inst, e.content}, nil
}

// normalize writes names as docker does.
func normalize(names string) (string, error) {
	var list []string
	seen := map[string]bool{"": true}
	for n := range strings.SplitSeq(names, ",") {
		if n == "" {
			continue
		}
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return "", fmt.Errorf("read image name %q: %w: %w", n, err, errdefs.ErrInvalidArgument)
		}
		if _, ok := ref.(reference.Digested); ok {
			return "", fmt.Errorf("image name %q has a digest: %w", n, errdefs.ErrInvalidArgument)
		}
		if full := reference.TagNameOnly(ref).String(); !seen[full] {
			seen[full] = true
			list = append(list, full)
		}
	}
	return strings.Join(list, ","), nil
}

type mobyInstance struct {
	exporter.ExporterInstance
	content content.Store
}

// Export also notes when the image was built, for docker to show.
func (i mobyInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	resp, finalize, desc, err := i.ExporterInstance.Export(ctx, src, info)
	if err != nil || desc == nil {
		return resp, finalize, desc, err
	}
	created, err := json.Marshal(map[string]time.Time{"createdAt": time.Now()})
	if err == nil {
		label := "moby/build.ref." + info.Ref
		_, err = i.content.Update(ctx, content.Info{
			Digest: desc.Descriptor().Digest, Labels: map[string]string{label: string(created)},
		}, "labels."+label)
	}
	if err != nil {
		_ = desc.Release()
		return nil, nil, nil, fmt.Errorf("note when the image was built: %w", err)
	}
	return resp, finalize, desc, nil
}
