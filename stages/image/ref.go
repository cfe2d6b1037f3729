package image

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// parse reads an image name the way docker does: alpine is docker.io/library/alpine:latest.
func parse(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err == nil {
		return named, nil
	}
	hint := "write it as [REGISTRY/]NAME[:TAG] or [REGISTRY/]NAME@sha256:DIGEST"
	switch {
	case ref == "":
		hint = "set image: in .gitlab-ci.yml"
	case strings.Contains(ref, "$"):
		hint = "a variable in it has no value"
	}
	return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("image %.200q: %v; %s", ref, err, hint))
}
