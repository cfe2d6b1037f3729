package script

import (
	"fmt"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"

	"gitlab.com/berth-ci/berth/test/runner/job"
)

const (
	externalConfig    = ".gitlab-runner.ext.conf"
	externalConfigVar = "GLR_EXT_GIT_CONFIG_PATH"
)

func (s Writer) getSources(w *writer) (bool, error) {
	settings := s.Job.Settings()
	s.exports(w, false)
	w.export("GIT_TERMINAL_PROMPT", "0")
	w.export("GCM_INTERACTIVE", "Never")
	s.hook(w, "pre_get_sources_script", "pre_clone_script")
	if !settings.SkipLFS {
		w.export("GIT_LFS_SKIP_SMUDGE", "1")
	}
	if err := s.fetch(w, settings); err != nil {
		return false, err
	}
	if settings.Checkout {
		s.checkout(w, settings)
	} else {
		w.notice("Skipping Git checkout")
	}
	if err := s.submodules(w, settings); err != nil {
		return false, err
	}
	s.hook(w, "post_get_sources_script", "post_clone_script")
	s.changeOwner(w, s.Job.RootDir)
	s.rejectCredentials(w)
	return true, nil
}

func (s Writer) hook(w *writer, name, prefix string) {
	if strategy := s.Job.Settings().Strategy; strategy == job.StrategyNone || strategy == job.StrategyEmpty {
		return
	}
	for _, hook := range s.Job.Hooks {
		if hook.Name == name {
			s.commands(w, prefix, hook.Script)
		}
	}
}

// fetch makes the repository and fetches into it, as the strategy says.
func (s Writer) fetch(w *writer, settings job.Settings) error {
	dir := s.Job.BuildDir
	switch settings.Strategy {
	case job.StrategyNone:
		w.notice("Skipping Git repository setup")
		w.command("mkdir", "-p", dir)
		return nil
	case job.StrategyEmpty:
		w.notice("Skipping Git repository setup and creating an empty build directory")
		w.removeDir(dir)
		w.command("mkdir", "-p", dir)
		return nil
	}
	s.cleanGit(w)
	template, remote, err := s.template(w, settings)
	if err != nil {
		return err
	}
	if settings.Strategy == job.StrategyClone {
		w.removeDir(dir)
	}
	depth := s.Job.GitInfo.Depth
	if depth > 0 {
		w.notice("Fetching changes with git depth set to %d...", depth)
	} else {
		w.notice("Fetching changes...")
	}
	initialize := []string{"git", "init", dir, "--template", template}
	if format := s.Job.GitInfo.RepoObjectFormat; format != "" && format != "sha1" {
		initialize = append(initialize, "--object-format", format)
	}
	w.command(initialize...)
	w.command("cd", dir)
	w.ifThen(quietly("git", "remote", "add", "origin", remote), func() {
		w.notice("Created fresh repository.")
	}, func() {
		w.command("git", "remote", "set-url", "origin", remote)
		includeConfig(w, ".git/config", "$"+externalConfigVar)
	})
	agent := fmt.Sprintf("http.userAgent=gitlab-runner %s %s/%s", job.Version, runtime.GOOS, runtime.GOARCH)
	fetch := append([]string{"git", "-c", agent, "fetch", "origin", "--no-recurse-submodules"}, s.Job.GitInfo.Refspecs...)
	if depth > 0 {
		w.command(slices.Concat(fetch, []string{"--depth", strconv.Itoa(depth)}, settings.FetchFlags)...)
		return nil
	}
	fetch = append(fetch, settings.FetchFlags...)
	w.ifThen(`[ -e ".git/shallow" ]`,
		func() { w.command(append(fetch, "--unshallow")...) },
		func() { w.command(fetch...) })
	return nil
}

// template makes the directory that git init copies and the configuration
// with the job's credentials, which stays outside of the working tree.
func (s Writer) template(w *writer, settings job.Settings) (dir, remote string, err error) {
	dir = path.Join(w.tmpDir, "git-template")
	config, external := path.Join(dir, "config"), w.tmpFile(externalConfig)
	w.command("mkdir", "-p", dir)
	if s.Job.Runner.Executor == "docker" {
		w.command("git", "config", "--global", "--add", "safe.directory", s.Job.BuildDir)
	}
	for _, setting := range [][2]string{
		{"init.defaultBranch", "none"},
		{"fetch.recurseSubmodules", "false"},
		{"credential.interactive", "never"},
		{"gc.autoDetach", "false"},
	} {
		w.command("git", "config", "-f", config, setting[0], setting[1])
	}
	w.removeFile(external)
	if s.Job.Flag("FF_USE_GITALY_CORRELATION_ID") {
		w.expanded("git", "config", "-f", external, "http.extraHeader", "X-Gitaly-Correlation-ID: "+s.Job.Correlation)
		w.notice("Gitaly correlation ID: %s", s.Job.Correlation)
	}
	if s.Job.Flag("FF_USE_GIT_BUNDLE_URIS") {
		w.expanded("git", "config", "-f", external, "transfer.bundleURI", "true")
	}
	remote, rewrites, err := s.remote(settings)
	if err != nil {
		return "", "", err
	}
	for _, r := range rewrites {
		w.expanded("git", "config", "--file", external, "--replace-all", "url."+r.with+".insteadOf", r.plain,
			"^"+regexp.QuoteMeta(r.plain)+"$")
	}
	includeConfig(w, config, external)
	w.linef(`export %s="%s"`, externalConfigVar, external)
	return dir, remote, nil
}

func includeConfig(w *writer, config, external string) {
	w.expanded("git", "config", "--file", config, "--replace-all", "include.path", external, regexp.QuoteMeta(externalConfig)+"$")
}

func (s Writer) checkout(w *writer, settings job.Settings) {
	sha := s.Job.GitInfo.SHA
	w.notice("Checking out %s as detached HEAD (ref is %s)...", sha[:min(len(sha), 8)], s.Job.GitInfo.Ref)
	w.command("git", "-c", "submodule.recurse=false", "checkout", "-f", "-q", sha)
	if len(settings.CleanFlags) > 0 {
		w.command(append([]string{"git", "clean"}, settings.CleanFlags...)...)
	}
	if !settings.SkipLFS {
		w.ifThen(quietly("git", "lfs", "version"), func() {
			w.command("git", "lfs", "pull")
			w.line("echo")
		}, nil)
	}
}

// cleanGit removes locks that a killed git left, and the configuration and
// hooks in which an earlier job could lie in wait.
func (s Writer) cleanGit(w *writer) {
	settings := s.Job.Settings()
	dir := path.Join(s.Job.BuildDir, ".git")
	submodules := settings.Submodules != "none"
	modules := path.Join(dir, "modules")
	for _, file := range []string{"index.lock", "shallow.lock", "HEAD.lock", "hooks/post-checkout", "config.lock"} {
		w.removeFile(path.Join(dir, file))
		if submodules {
			w.removeNamed(modules, path.Base(file), "f")
		}
	}
	w.removeNamed(path.Join(dir, "refs"), "*.lock", "f")
	if settings.Strategy == job.StrategyNone {
		return
	}
	for _, d := range []string{w.tmpFile("git-template"), dir} {
		w.removeFile(path.Join(d, "config"))
		w.removeDir(path.Join(d, "hooks"))
	}
	if submodules {
		w.removeNamed(modules, "config", "f")
		w.removeNamed(modules, "hooks", "d")
	}
}

func (s Writer) clearWorktree(w *writer) (bool, error) {
	w.notice("Deleting tracked and untracked files...")
	w.ifThen(fmt.Sprintf("[ -d %q ]", s.Job.BuildDir), func() {
		w.command("cd", s.Job.BuildDir)
		w.command("git", "rm", "-rf", "--ignore-unmatch", "--quiet", ".")
		w.command("git", "clean", "-ffdx", "-q")
	}, nil)
	return true, nil
}
