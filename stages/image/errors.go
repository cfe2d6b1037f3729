package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// refused tells whether a registry demanded other credentials than it got.
func refused(err error) bool {
	code := status(err)
	return errors.Is(err, docker.ErrInvalidAuthorization) ||
		code == http.StatusUnauthorized || code == http.StatusForbidden
}

// status is the HTTP status of a registry's answer, 0 if err is none.
func status(err error) int {
	var answer remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &answer) {
		return answer.StatusCode
	}
	return 0
}

// explain turns a failure into one that names image, registry, cause and next step. It does not wrap err, whose
// text may hold what must not be shown.
func (r *registry) explain(err error) error {
	var (
		host    = reference.Domain(r.named)
		request *url.Error
		wrong   wrongPlatform
		cause   = r.redact(err.Error())
		code    = status(err)
	)
	say := func(class interface{ WithMessage(string) error }, format string, args ...any) error {
		return class.WithMessage(fmt.Sprintf("image %s: ", r.ref) + fmt.Sprintf(format, args...))
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("image %s: %w", r.ref, err)
	case errors.As(err, &wrong):
		return say(errdefs.ErrNotFound, "registry %s has it for %s, not for %s; choose another image or image:docker:platform",
			host, strings.Join(wrong.offered, ", "), r.wanted())
	case refused(err):
		return r.denied(host, cause, code)
	case code == http.StatusTooManyRequests:
		return say(errdefs.ErrUnavailable, "registry %s limits the rate of pulls: %s; log in with DOCKER_AUTH_CONFIG, or have a mirror set up in hosts.toml", host, cause)
	case code >= http.StatusInternalServerError:
		return say(errdefs.ErrUnavailable, "registry %s is in trouble: %s; try again later", host, cause)
	case errors.As(err, &request):
		return say(errdefs.ErrUnavailable, "registry %s cannot be reached: %s; check its name, the node's network, and certificates and mirrors in hosts.toml", host, cause)
	case strings.Contains(cause, "no space left on device"):
		return say(errdefs.ErrResourceExhausted, "the node's disk is full: %s; free space in containerd's root", cause)
	case errdefs.IsNotFound(err):
		return say(errdefs.ErrNotFound, "registry %s does not have it: %s; check name and tag", host, cause)
	case errdefs.IsUnavailable(err):
		return say(errdefs.ErrUnavailable, "containerd does not answer: %s; check that it runs", cause)
	}
	return say(errdefs.ErrUnknown, "pull from registry %s failed: %s", host, cause)
}

// denied tells which credentials a registry refused, or that it had none to go by.
func (r *registry) denied(host, cause string, code int) error {
	class := errdefs.ErrUnauthenticated.WithMessage
	if code == http.StatusForbidden {
		class = errdefs.ErrPermissionDenied.WithMessage
	}
	sources, failures := r.tried()
	what, next := "wants credentials and there are none for it", "set them in DOCKER_AUTH_CONFIG, or check the image's name"
	if len(sources) > 0 {
		what = "refused the credentials from " + strings.Join(sources, " and from ")
		next = "check that they are valid, may read the image, and that the image exists"
	}
	text := fmt.Sprintf("image %s: registry %s %s: %s", r.ref, host, what, cause)
	for _, err := range failures {
		text += "; " + err.Error()
	}
	return class(text + "; " + next)
}

// query matches what follows the path of a URL: signatures of storage services and tokens are there.
var query = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`)

// redact takes from a text what could serve as a key.
func (r *registry) redact(text string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.logins {
		if l.secret != "" {
			text = strings.ReplaceAll(text, l.secret, "[MASKED]")
		}
	}
	return query.ReplaceAllString(text, "$1")
}
