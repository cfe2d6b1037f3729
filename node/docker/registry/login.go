package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

// hubIndex is how clients have called Docker Hub since its first days.
const hubIndex = "index.docker.io"

// Login asks a registry whether it knows a login. The token is one that can be
// used in the place of the password, empty where the registry has none.
func (r *Registry) Login(ctx context.Context, job Job, login registry.AuthConfig) (token string, err error) {
	domain, err := domainOf(login.ServerAddress)
	if err != nil {
		return "", err
	}
	hosts, _, err := r.hosts(ctx, domain, job, login, docker.WithFetchRefreshToken(func(_ context.Context, t string, _ *http.Request) { token = t }))
	if err != nil {
		return "", err
	}
	defer closeIdle(hosts)
	// The last is the registry itself, those before it are mirrors.
	if len(hosts) == 0 {
		return "", fmt.Errorf("log in to %s: it has no host: %w", domain, errdefs.ErrFailedPrecondition)
	}
	host := hosts[len(hosts)-1]
	var answers []*http.Response
	for range 2 { // without the login, and with it
		res, err := ping(ctx, host) //nolint:bodyclose // it is closed there
		if err != nil {
			return "", err
		}
		if res.StatusCode == http.StatusOK {
			return token, nil
		}
		answers = append(answers, res) //nolint:bodyclose // as above
		if res.StatusCode != http.StatusUnauthorized {
			return "", fmt.Errorf("login attempt to %s failed with status: %s: %w", res.Request.URL, res.Status, errdefs.ErrUnknown)
		}
		if err := host.Authorizer.AddResponses(ctx, answers); err != nil {
			if errors.Is(err, docker.ErrInvalidAuthorization) {
				break
			}
			return "", fmt.Errorf("log in to %s: %w", domain, err)
		}
	}
	last := answers[len(answers)-1]
	return "", errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("login attempt to %s failed with status: %s", last.Request.URL, last.Status))
}

// domainOf is the registry of what a client calls the server: a host, or the
// address of an API of it.
func domainOf(server string) (string, error) {
	_, rest, ok := strings.Cut(server, "://")
	if !ok {
		rest = server
	}
	u, err := url.Parse("https://" + rest)
	if err != nil || u.User != nil {
		return "", fmt.Errorf("unable to parse server address: %w", errdefs.ErrInvalidArgument)
	}
	switch u.Host {
	case "", hub, hubIndex, hubHost:
		return hub, nil
	}
	return u.Host, nil
}

// ping asks for the root of the API. Of the answer, the head counts.
func ping(ctx context.Context, host docker.RegistryHost) (*http.Response, error) {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: strings.TrimRight(host.Path, "/") + "/"}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", host.Host, err)
	}
	if err := host.Authorizer.Authorize(ctx, r); err != nil {
		var status remoteerrors.ErrUnexpectedStatus
		if errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden) {
			return nil, errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("Get %q: unauthorized: incorrect username or password", u.String()))
		}
		return nil, fmt.Errorf("log in to %s: %w", host.Host, err)
	}
	res, err := host.Client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection may be used again
	return res, err
}
