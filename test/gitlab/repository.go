package gitlab

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

const author, authorMail = "Author", "author@example.com"

// gitEnv keeps the host's git configuration out.
func gitEnv() []string {
	return append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME="+author, "GIT_AUTHOR_EMAIL="+authorMail,
		"GIT_COMMITTER_NAME="+author, "GIT_COMMITTER_EMAIL="+authorMail)
}

// git runs git and returns what it prints, trimmed.
func git(stdin io.Reader, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("git", args...)
	cmd.Env = gitEnv()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

var backend = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("git", "--exec-path").Output()
	return filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), err
})

// serveRepository answers /group/project.git/… by git's own CGI program.
func (s *Server) serveRepository(w http.ResponseWriter, r *http.Request) {
	projectPath, rest, found := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), ".git/")
	_, password, _ := r.BasicAuth()
	s.mu.Lock()
	p, allowed := s.projects[projectPath], s.opens(password)
	s.mu.Unlock()
	switch {
	case !allowed:
		w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
		http.Error(w, "HTTP Basic: Access denied", http.StatusUnauthorized)
		return
	case !found || p == nil:
		http.NotFound(w, r)
		return
	case strings.HasPrefix(rest, "info/lfs/"):
		p.serveLFS(w, r, strings.TrimPrefix(rest, "info/lfs/"))
		return
	}
	program, err := backend()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	inner := r.Clone(r.Context())
	inner.URL.Path = "/" + filepath.Base(p.dir) + "/" + rest
	if inner.ContentLength < 0 { // CGI knows no chunked bodies
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		inner.Body, inner.ContentLength, inner.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	}
	(&cgi.Handler{
		Path:   program,
		Env:    append(gitEnv(), "GIT_PROJECT_ROOT="+s.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=gitlab-ci-token"),
		Stderr: io.Discard,
	}).ServeHTTP(&counted{ResponseWriter: w, of: p, counts: rest == "git-upload-pack"}, inner)
}

// counted counts what is sent of a repository once a pack begins.
type counted struct {
	http.ResponseWriter
	of     *Project
	counts bool
	begun  bool
}

// Write counts.
func (c *counted) Write(b []byte) (int, error) {
	if c.begun = c.begun || c.counts && bytes.Contains(b, []byte("packfile\n")); c.begun {
		c.of.sent.Add(int64(len(b)))
	}
	return c.ResponseWriter.Write(b)
}

// opens reports whether a token is that of a job which runs. s.mu is held.
func (s *Server) opens(token string) bool {
	for _, j := range s.jobs {
		if j.token == token && (j.state == Running || j.state == Canceling) {
			return true
		}
	}
	return false
}
