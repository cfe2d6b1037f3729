package script

import (
	"fmt"
	"slices"
	"strconv"

	"gitlab.com/berth-ci/berth/test/runner/job"
)

func (s Writer) submodules(w *writer, settings job.Settings) error {
	if settings.Submodules == "none" {
		w.notice("Skipping Git submodules setup")
		return nil
	}
	if slices.Contains(settings.SubmodulePaths, ":(exclude)") {
		return fmt.Errorf("GIT_SUBMODULE_PATHS: invalid submodule pathspec %q", settings.SubmodulePaths)
	}
	recursive, depth := settings.Submodules == "recursive", settings.SubmoduleDepth
	text := "Updating/initializing submodules"
	if recursive {
		text += " recursively"
	}
	if depth > 0 {
		text += fmt.Sprintf(" with git depth set to %d", depth)
	}
	w.notice("%s...", text)

	var recurse, paths []string
	if recursive {
		recurse = []string{"--recursive"}
	}
	if len(settings.SubmodulePaths) > 0 {
		paths = append([]string{"--"}, settings.SubmodulePaths...)
	}
	clean := []string{"-ffdx"}
	if len(settings.CleanFlags) > 0 {
		clean = settings.CleanFlags
	}
	sync := slices.Concat([]string{"git", "submodule", "sync"}, recurse, paths)
	foreach := slices.Concat([]string{"submodule", "foreach"}, recurse)
	update := slices.Concat([]string{"submodule", "update", "--init"}, recurse)
	if depth > 0 {
		update = append(update, "--depth", strconv.Itoa(depth))
	}
	update = slices.Concat(update, settings.SubmoduleFlags, paths)
	each := func(command ...string) { w.command(slices.Concat([]string{"git"}, foreach, command)...) }
	cleanAll := slices.Concat([]string{"git", "clean"}, clean)
	// git submodule does not read the configuration of the outer repository.
	withCredentials := func(args []string) []string {
		return slices.Concat([]string{"git", "-c", "include.path=$" + externalConfigVar}, args)
	}

	w.command("git", "submodule", "init")
	w.command(sync...)
	each(cleanAll...)
	each("git", "reset", "--hard")
	w.ifThen(expandable(withCredentials(update))+" ", func() {
		w.notice("Updated submodules")
		w.command(sync...)
	}, func() {
		w.warning("Updating submodules failed. Retrying...")
		if slices.Contains(settings.SubmoduleFlags, "--remote") {
			w.expanded(withCredentials(slices.Concat(foreach, []string{"git", "fetch", "origin", "+refs/heads/*:refs/remotes/origin/*"}))...)
		}
		w.command(sync...)
		w.expanded(withCredentials(update)...)
		each("git", "reset", "--hard")
	})
	each(cleanAll...)
	w.notice("Configuring submodules to use parent git credentials...")
	w.expanded("git", "submodule", "foreach", "--recursive", "git", "config", "--replace-all", "include.path", "$"+externalConfigVar)
	if !settings.SkipLFS {
		w.ifThen(quietly("git", "lfs", "version"), func() {
			w.notice("Pulling LFS files...")
			w.expanded(withCredentials(slices.Concat(foreach, []string{"git", "lfs", "pull"}))...)
		}, nil)
	}
	return nil
}
