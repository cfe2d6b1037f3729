package gitlab

import (
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// DefaultBranch is the default branch of every project, and protected.
const DefaultBranch = "main"

// Project is a project with its repository.
type Project struct {
	ID   int64
	Path string // group/project

	srv *Server
	dir string

	sent atomic.Int64 // bytes of objects, and what goes with them

	mu        sync.Mutex // of commits and variables
	variables []Variable
}

// AddProject makes a project whose default branch holds files. os.DirFS and
// fstest.MapFS make some.
func (s *Server) AddProject(projectPath string, files fs.FS) (*Project, error) {
	s.mu.Lock()
	id := s.nextID()
	s.mu.Unlock()
	p := &Project{ID: id, Path: projectPath, srv: s, dir: filepath.Join(s.dir, strconv.FormatInt(id, 10)+".git")}
	if _, err := git(nil, "init", "--quiet", "--bare", "--initial-branch", DefaultBranch, p.dir); err != nil {
		return nil, err
	}
	// What GitLab allows: a commit by its id, and pushes.
	for _, setting := range []string{"uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter", "http.receivepack"} {
		if _, err := p.git("config", setting, "true"); err != nil {
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

// Sent counts the bytes that git has sent to those who fetch, but for its lists of refs.
func (p *Project) Sent() int64 { return p.sent.Load() }

// SetVariables sets the variables of the project's settings, which come after
// those of a job and hide them.
func (p *Project) SetVariables(variables ...Variable) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.variables = slices.Clone(variables)
}

// Commit makes files the whole content of a branch and returns the commit.
func (p *Project) Commit(branch string, files fs.FS) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	tree, err := os.MkdirTemp(p.srv.dir, "tree")
	if err != nil {
		return "", fmt.Errorf("create working tree: %w", err)
	}
	defer func() { _ = os.RemoveAll(tree) }() // else with the server's directory
	if err := os.CopyFS(tree, files); err != nil {
		return "", fmt.Errorf("copy files of %s: %w", p.Path, err)
	}
	// --force: what the files' own .gitignore says is the job's business.
	if _, err := p.git("--work-tree", tree, "add", "--all", "--force", tree); err != nil {
		return "", err
	}
	return p.commitIndex(branch, "Commit to "+branch)
}

// Import adds what a stream for git fast-import says. It is read to its end.
func (p *Project) Import(stream io.Reader) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := git(stream, "--git-dir", p.dir, "fast-import", "--quiet")
	return err
}

// AddSubmodule adds to the default branch, at dir, the present commit of
// another project.
func (p *Project) AddSubmodule(dir string, sub *Project) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	commit, err := sub.resolve("refs/heads/" + DefaultBranch)
	if err != nil {
		return err
	}
	modules := fmt.Sprintf("[submodule %q]\n\tpath = %s\n\turl = %s.git\n", dir, dir, sub.url())
	file, err := git(strings.NewReader(modules), "--git-dir", p.dir, "hash-object", "-w", "--stdin")
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"read-tree", "refs/heads/" + DefaultBranch},
		{"update-index", "--add", "--cacheinfo", "160000," + commit + "," + dir},
		{"update-index", "--add", "--cacheinfo", "100644," + file + ",.gitmodules"},
	} {
		if _, err := p.git(args...); err != nil {
			return err
		}
	}
	_, err = p.commitIndex(DefaultBranch, "Add "+dir)
	return err
}

// commitIndex commits what the repository's index holds.
func (p *Project) commitIndex(branch, message string) (string, error) {
	tree, err := p.git("write-tree")
	if err != nil {
		return "", err
	}
	args := []string{"commit-tree", "-m", message, tree}
	if parent, err := p.resolve("refs/heads/" + branch); err == nil {
		args = append(args, "-p", parent)
	}
	commit, err := p.git(args...)
	if err != nil {
		return "", err
	}
	_, err = p.git("update-ref", "refs/heads/"+branch, commit)
	return commit, err
}

// Tag names the present commit of a branch.
func (p *Project) Tag(name, branch string) error {
	_, err := p.git("update-ref", "refs/tags/"+name, "refs/heads/"+branch)
	return err
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
	_, err = p.git("update-ref", "refs/pipelines/"+strconv.FormatInt(pipeline, 10), commit)
	return commit, err
}

func (p *Project) resolve(ref string) (string, error) {
	return p.git("rev-parse", "--verify", "--quiet", ref+"^{commit}")
}

func (p *Project) git(args ...string) (string, error) {
	return git(nil, append([]string{"--git-dir", p.dir}, args...)...)
}

func (p *Project) name() string { return path.Base(p.Path) }

func (p *Project) url() string {
	u, err := url.Parse(p.srv.url)
	if err != nil {
		return ""
	}
	return u.JoinPath(p.Path).String()
}
