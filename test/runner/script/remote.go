package script

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"gitlab.com/berth-ci/berth/test/runner/job"
)

// rewrite makes git use an address with credentials in place of a plain one.
type rewrite struct{ with, plain string }

// remote is the address to fetch from, without the credentials that the
// rewrites put in.
func (s Writer) remote(settings job.Settings) (string, []rewrite, error) {
	repo, err := s.repository()
	if err != nil {
		return "", nil, err
	}
	base, err := url.Parse(s.Job.Runner.URL)
	if clone, errClone := url.Parse(s.Job.Runner.CloneURL); errClone == nil && clone.Scheme != "" {
		base, err = clone, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("parse server address: %w", err)
	}
	plain := *repo
	plain.User = nil
	authed, bare := s.authed(base), trimmed(*base)
	rewrites := []rewrite{{repo.String(), plain.String()}, {authed, bare}}
	if settings.SubmoduleHTTPS {
		host, port := s.Job.Value("CI_SERVER_SHELL_SSH_HOST"), s.Job.Value("CI_SERVER_SHELL_SSH_PORT")
		if host == "" {
			host = s.Job.Value("CI_SERVER_HOST")
		}
		if port == "" || port == "22" {
			rewrites = append(rewrites, rewrite{authed + "/", "git@" + host + ":"}, rewrite{authed, "ssh://git@" + host})
		} else {
			rewrites = append(rewrites, rewrite{authed, "ssh://git@" + host + ":" + port})
		}
	}
	if api, err := url.Parse(s.Job.GitInfo.RepoURL); err == nil {
		api = &url.URL{Scheme: api.Scheme, Host: api.Host}
		rewrites = append(rewrites, rewrite{s.authed(api), trimmed(*api)})
	}
	var unique []rewrite
	for _, r := range rewrites {
		if r.with != r.plain && !slices.Contains(unique, r) {
			unique = append(unique, r)
		}
	}
	return plain.String(), unique, nil
}

// repository is the address with credentials: clone_url's if configured.
func (s Writer) repository() (*url.URL, error) {
	if u, err := url.Parse(s.Job.Runner.CloneURL); err == nil && u.Scheme != "" {
		u.Path = path.Join(u.Path, s.Job.Value("CI_PROJECT_PATH")+".git")
		u.User = url.UserPassword("gitlab-ci-token", s.Job.Token)
		return u, nil
	}
	u, err := url.Parse(s.Job.GitInfo.RepoURL)
	if err != nil {
		return nil, fmt.Errorf("parse repository address: %w", err)
	}
	return u, nil
}

func (s Writer) authed(base *url.URL) string {
	u := *base
	u.User = url.UserPassword("gitlab-ci-token", s.Job.Token)
	return trimmed(u)
}

func trimmed(u url.URL) string { return strings.TrimRight(u.String(), "/") }

// rejectCredentials makes credential helpers of the user's forget the token.
func (s Writer) rejectCredentials(w *writer) {
	u, err := s.repository()
	if err != nil || u.Host == "" {
		return
	}
	w.linef("%s | %s || true",
		quoteAll([]string{"echo", "url=" + u.Scheme + "://" + u.Host + "\nusername=gitlab-ci-token"}),
		quoteAll([]string{"git", "credential", "reject"}))
}
