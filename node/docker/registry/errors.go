package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// refused says in dockerd's words why a registry did not give an image.
func refused(named reference.Named, err error) error {
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization) && strings.Contains(err.Error(), "no basic auth credentials"):
		return err
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("pull access denied for %s, repository does not exist or may require 'docker login'", reference.FamiliarName(named)))
	}
	return answered(err)
}

// classes of what registries answer.
var classes = map[docker.ErrorCode]interface {
	error
	WithMessage(string) error
}{
	docker.ErrorCodeUnsupported:     errdefs.ErrNotImplemented,
	docker.ErrorCodeUnauthorized:    errdefs.ErrUnauthenticated,
	docker.ErrorCodeDenied:          errdefs.ErrPermissionDenied,
	docker.ErrorCodeUnavailable:     errdefs.ErrUnavailable,
	docker.ErrorCodeTooManyRequests: errdefs.ErrResourceExhausted,
}

// answered makes of an answer what the registry meant by it, as dockerd does.
func answered(err error) error {
	var all docker.Errors
	var status remoteerrors.ErrUnexpectedStatus
	var one docker.Error
	switch {
	case errors.As(err, &all):
	case errors.As(err, &status):
		if json.Unmarshal(status.Body, &all) != nil || len(all) == 0 {
			return fmt.Errorf("%w: %w", errdefs.ErrUnknown, err)
		}
	case errors.As(err, &one):
		all = docker.Errors{one}
	default:
		return err
	}
	var errs []error
	for _, said := range all {
		if errors.As(said, &one) {
			message := one.Message
			if message == "" {
				message = one.Code.Message()
			}
			if detail, ok := one.Detail.(string); ok {
				message += " - " + detail
			}
			if class, ok := classes[one.Code]; ok {
				said = class.WithMessage(message)
			} else {
				said = errdefs.ErrUnknown.WithMessage(message)
			}
		}
		errs = append(errs, said)
	}
	return fmt.Errorf("error from registry: %w", errors.Join(errs...))
}
