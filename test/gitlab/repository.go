package gitlab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// DefaultBranch is the default branch of every project, and protected.
const DefaultBranch = "main"

const author, authorMail = "Author", "author@example.com"

// Project is a project with its repository.
type Project struct {
	ID   int64
	Path string // group/project

	srv *Server
	dir string
	mu  sync.Mutex // of commits
}

// AddProject makes a project whose default branch holds files. os.DirFS and
// fstest.MapFS make some.
func (s *Server) AddProject(projectPath string, files fs.FS) (*Project, error) {
	s.mu.Lock()
	id := s.nextID()
	s.mu.Unlock()
	p := &Project{ID: id, Path: projectPath, srv: s, dir: filepath.Join(s.dir, strconv.FormatInt(id, 10)+".git")}
	if err := git(nil, nil, nil, "init", "--quiet", "--bare", "--initial-branch", DefaultBranch, p.dir); err != nil {
		return nil, err
	}
	// What GitLab allows: a commit by its id, and pushes.
	for _, setting := range []string{"uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter", "http.receivepack"} {
		if err := git(nil, nil, nil, "-C", p.dir, "config", setting, "true"); err != nil {
			return nil, err
		}
	}
	if _, err := p.Commit(DefaultBranch, files); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.projects[projectPath] = p
	return p, nil
}

// Commit makes files the whole content of a branch and returns the commit.
func (p *Project) Commit(branch string, files fs.FS) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	tree, err := os.MkdirTemp(p.srv.dir, "tree")
	if err != nil {
		return "", fmt.Errorf("create working tree: %w", err)
	}
	defer os.RemoveAll(tree)
	if err := os.CopyFS(tree, files); err != nil {
		return "", fmt.Errorf("copy files of %s: %w", p.Path, err)
	}
	// --force: what the files' own .gitignore says is the job's business.
	if err := git(nil, nil, nil, "--git-dir", p.dir, "--work-tree", tree, "add", "--all", "--force", tree); err != nil {
		return "", err
	}
	var id bytes.Buffer
	if err := git(nil, &id, nil, "--git-dir", p.dir, "write-tree"); err != nil {
		return "", err
	}
	args := []string{"--git-dir", p.dir, "commit-tree", "-m", "Commit to " + branch, strings.TrimSpace(id.String())}
	if parent, err := p.resolve("refs/heads/" + branch); err == nil {
		args = append(args, "-p", parent)
	}
	id.Reset()
	if err := git(nil, &id, nil, args...); err != nil {
		return "", err
	}
	commit := strings.TrimSpace(id.String())
	return commit, git(nil, nil, nil, "--git-dir", p.dir, "update-ref", "refs/heads/"+branch, commit)
}

// AddSubmodule adds to a branch a submodule at dir, at a commit of another project.
func (p *Project) AddSubmodule(branch, dir string, sub *Project) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	target, err := sub.resolve("refs/heads/" + DefaultBranch)
	if err != nil {
		return err
	}
	head, err := p.resolve("refs/heads/" + branch)
	if err != nil {
		return err
	}
	modules := fmt.Sprintf("[submodule %q]\n\tpath = %s\n\turl = %s.git\n", dir, dir, sub.url())
	var id bytes.Buffer
	if err := git(strings.NewReader(modules), &id, nil, "--git-dir", p.dir, "hash-object", "-w", "--stdin"); err != nil {
		return err
	}
	steps := [][]string{
		{"read-tree", head},
		{"update-index", "--add", "--cacheinfo", "160000," + target + "," + dir},
		{"update-index", "--add", "--cacheinfo", "100644," + strings.TrimSpace(id.String()) + ",.gitmodules"},
	}
	for _, step := range steps {
		if err := git(nil, nil, nil, append([]string{"--git-dir", p.dir}, step...)...); err != nil {
			return err
		}
	}
	id.Reset()
	if err := git(nil, &id, nil, "--git-dir", p.dir, "write-tree"); err != nil {
		return err
	}
	tree := strings.TrimSpace(id.String())
	id.Reset()
	if err := git(nil, &id, nil, "--git-dir", p.dir, "commit-tree", "-m", "Add "+dir, "-p", head, tree); err != nil {
		return err
	}
	return git(nil, nil, nil, "--git-dir", p.dir, "update-ref", "refs/heads/"+branch, strings.TrimSpace(id.String()))
}

// Tag names the present commit of a branch.
func (p *Project) Tag(name, branch string) error {
	return git(nil, nil, nil, "--git-dir", p.dir, "update-ref", "refs/tags/"+name, "refs/heads/"+branch)
}

// pin keeps the commit of a ref for a pipeline and returns it.
func (p *Project) pin(ref string, tag bool, pipeline int64) (string, error) {
	kind := "refs/heads/"
	if tag {
		kind = "refs/tags/"
	}
	commit, err := p.resolve(kind + ref)
	if err != nil {
		return "", err
	}
	return commit, git(nil, nil, nil, "--git-dir", p.dir, "update-ref", "refs/pipelines/"+strconv.FormatInt(pipeline, 10), commit)
}

func (p *Project) resolve(ref string) (string, error) {
	var out bytes.Buffer
	if err := git(nil, &out, nil, "--git-dir", p.dir, "rev-parse", "--verify", "--quiet", ref+"^{commit}"); err != nil {
		return "", err
	}
	return strings.TrimSpace(out.String()), nil
}

func (p *Project) name() string { return path.Base(p.Path) }

func (p *Project) url() string {
	u, err := url.Parse(p.srv.url)
	if err != nil {
		return ""
	}
	return u.JoinPath(p.Path).String()
}

// gitEnv keeps the host's git configuration out.
func gitEnv() []string {
	return append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME="+author, "GIT_AUTHOR_EMAIL="+authorMail,
		"GIT_COMMITTER_NAME="+author, "GIT_COMMITTER_EMAIL="+authorMail)
}

func git(stdin io.Reader, stdout io.Writer, env []string, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.Command("git", args...)
	cmd.Env = append(gitEnv(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
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
		if err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		inner.Body, inner.ContentLength, inner.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	}
	(&cgi.Handler{
		Path:   program,
		Env:    append(gitEnv(), "GIT_PROJECT_ROOT="+s.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=gitlab-ci-token"),
		Stderr: io.Discard,
	}).ServeHTTP(w, inner)
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
