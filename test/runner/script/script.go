// Package script writes the bash scripts that gitlab-runner makes of a job's
// stages, line by line as version 19.4 with its default feature flags; a test
// compares them with those of the real program.
package script

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner/job"
)

// The stages that every job may have; those of its steps are named step_NAME.
const (
	Prepare          = "prepare_script"
	GetSources       = "get_sources"
	ClearWorktree    = "clear_worktree"
	RestoreCache     = "restore_cache"
	Download         = "download_artifacts"
	After            = "after_script"
	ArchiveOnSuccess = "archive_cache"
	ArchiveOnFailure = "archive_cache_on_failure"
	UploadOnSuccess  = "upload_artifacts_on_success"
	UploadOnFailure  = "upload_artifacts_on_failure"
	Cleanup          = "cleanup_file_variables"
)

// Predefined reports whether a stage is the runner's own, not the user's.
func Predefined(stage string) bool {
	return stage != After && !strings.HasPrefix(stage, "step_")
}

// Step is the stage of a step of the job.
func Step(name string) string { return "step_" + strings.ToLower(name) }

// Writer writes the scripts of one job. Command is the runner's own program
// as scripts call it.
type Writer struct {
	Job     *job.Job
	Command string
}

// Script returns the script of a stage, empty where there is nothing to do.
func (s Writer) Script(stage string) (string, error) {
	w := &writer{tmpDir: s.Job.TmpDir()}
	stages := map[string]func(*writer) (bool, error){
		Prepare:          s.prepare,
		GetSources:       s.getSources,
		ClearWorktree:    s.clearWorktree,
		RestoreCache:     s.restoreCache,
		Download:         s.download,
		After:            s.after,
		ArchiveOnSuccess: func(w *writer) (bool, error) { return s.archiveCache(w, true) },
		ArchiveOnFailure: func(w *writer) (bool, error) { return s.archiveCache(w, false) },
		UploadOnSuccess:  func(w *writer) (bool, error) { return s.upload(w, true) },
		UploadOnFailure:  func(w *writer) (bool, error) { return s.upload(w, false) },
		Cleanup:          s.cleanup,
	}
	write, ok := stages[stage]
	if !ok {
		write = func(w *writer) (bool, error) { return s.user(w, stage), nil }
	}
	if needed, err := write(w); err != nil || !needed {
		return "", err
	}
	return w.finish(s.Job.Settings().Trace, s.Job.Flag("FF_USE_LEGACY_BASH_EVAL")), nil
}

// exports writes all variables; with paths set, of file variables only where
// their files already are.
func (s Writer) exports(w *writer, paths bool) {
	for _, v := range s.Job.Variables() {
		if paths && v.File {
			v = gitlab.Variable{Key: v.Key, Value: w.tmpFile(v.Key)}
		}
		w.variable(v)
	}
	env := w.tmpFile("gitlab_runner_env")
	w.export("GITLAB_ENV", env)
	w.linef("mkdir -p %q", w.tmpDir)
	w.linef("touch %q", env)
	w.linef(`while read -r line; do export "$line"; done < %q`, env)
}

func (s Writer) begin(w *writer) {
	s.exports(w, false)
	w.command("cd", s.Job.BuildDir)
}

func (s Writer) prepare(w *writer) (bool, error) {
	via := ""
	if s.Job.Hostname != "" {
		via = " via " + s.Job.Hostname
	}
	w.linef("echo %q", "Running on $(hostname)"+via+"...")
	w.removeFile(w.tmpFile("gitlab_runner_env"))
	w.removeFile(w.tmpFile("masking.db"))
	return true, nil
}

func (s Writer) user(w *writer, stage string) bool {
	i := slices.IndexFunc(s.Job.Steps, func(step gitlab.Step) bool { return Step(step.Name) == stage })
	if i < 0 {
		return false
	}
	lines := slices.Clone(s.Job.Steps[i].Script)
	if s.Job.Steps[i].Name == "release" {
		for n := range lines {
			lines[n] = s.Job.Expand(lines[n])
		}
	}
	s.begin(w)
	s.commands(w, "script_step", lines)
	return true
}

func (s Writer) after(w *writer) (bool, error) {
	for _, step := range s.Job.Steps {
		if step.Name == "after_script" && len(step.Script) > 0 {
			s.begin(w)
			w.notice("Running after script...")
			s.commands(w, "after_script_step", step.Script)
			return true, nil
		}
	}
	return false, nil
}

// commands writes lines of the user's, each after saying it.
func (s Writer) commands(w *writer, prefix string, lines []string) {
	for i, command := range lines {
		command = strings.TrimSpace(command)
		first, _, multiline := strings.Cut(command, "\n")
		switch {
		case command == "":
			w.line("echo")
		case !multiline:
			w.notice("$ %s", command)
		case s.Job.Flag("FF_SCRIPT_SECTIONS") && s.Job.Features.TraceSections:
			w.section(fmt.Sprintf("%s_%d", prefix, i), "$ "+command)
		default:
			w.notice("$ %s # collapsed multi-line command", first)
		}
		w.line(command)
	}
}

func (s Writer) cleanup(w *writer) (bool, error) {
	s.exports(w, true)
	s.rejectCredentials(w)
	for _, name := range []string{"gitlab_runner_env", "masking.db", externalConfig, ".glr.gconf"} {
		w.removeFile(w.tmpFile(name))
	}
	for _, v := range s.Job.Variables() {
		if v.File {
			w.removeFile(w.tmpFile(v.Key))
		}
	}
	s.cleanGit(w)
	w.removeFile(path.Join(s.Job.RootDir, ownerFile))
	return true, nil
}

// guarded runs then if the runner's program is there.
func (s Writer) guarded(w *writer, action string, then func()) {
	w.ifThen(quietly(s.Command, "--version"), then, func() {
		w.warning("Missing %s. %s is disabled.", s.Command, action)
	})
}

// ownerFile is where the Kubernetes executor notes the owner of the tree.
const ownerFile = ".gitlab-build-uid-gid"

func (s Writer) changeOwner(w *writer, dirs ...string) {
	file := s.Job.RootDir + "/" + ownerFile
	w.ifThen(fmt.Sprintf("[ -e %q ]", file), func() {
		for _, dir := range dirs {
			w.ifThen(fmt.Sprintf("[ -d %q ]", dir), func() {
				w.linef(`chown -R "$(stat -c '%%u:%%g' '%s')" '%s'`, file, dir)
				if s.Job.Settings().Debug {
					w.linef(`echo "Setting ownership for %s to $(stat -c '%%u:%%g' '%s')"`, dir, file)
				}
			}, nil)
		}
	}, nil)
}
