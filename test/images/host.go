package images

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// busyboxTree has busybox under all its names, and what a root file system
// needs besides.
func busyboxTree() (tree, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox: %w: install busybox-static", err)
	}
	if libraries, err := libraries(busybox); err != nil || len(libraries) > 0 {
		return nil, errors.Join(err, fmt.Errorf("%s needs libraries: install busybox-static", busybox))
	}
	names, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's programs: %w", err)
	}
	t := accounts("", "")
	for name := range strings.FieldsSeq(string(names)) {
		t["/bin/"+name] = symlink("busybox")
	}
	t["/bin/busybox"] = copyOf(busybox)
	t["/usr/bin/env"] = symlink("../../bin/busybox")
	t["/root"] = directory(0o700)
	t["/tmp"] = directory(0o777 | os.ModeSticky)
	return t, nil
}

// accounts are root, nobody and others.
func accounts(passwd, group string) tree {
	return tree{
		"/etc/passwd": text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n" + passwd),
		"/etc/group":  text("root:x:0:\nnogroup:x:65534:\n" + group),
	}
}

// gitTree has bash, git and git-lfs of this machine.
func gitTree() (tree, error) {
	t := tree{
		// What `git lfs install` writes, for root alone, as in helper images.
		"/root/.gitconfig": text("[filter \"lfs\"]\n\tclean = git-lfs clean -- %f\n\tsmudge = git-lfs smudge -- %f\n" +
			"\tprocess = git-lfs filter-process\n\trequired = true\n"),
		"/usr/share/git-core/templates": directory(0o755),
	}
	for _, name := range []string{"bash", "git", "git-lfs"} {
		file, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w: install %s", name, err, name)
		}
		if err := t.addProgram("/usr/bin/"+name, file); err != nil {
			return nil, err
		}
	}
	t["/bin/bash"] = symlink("../usr/bin/bash")
	dir, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("find git's programs: %w", err)
	}
	return t, t.addGitPrograms(strings.TrimSpace(string(dir)))
}

// addGitPrograms adds those of the directory that are no server's. The many
// that are git itself, by whatever kind of link, become links to it.
func (t tree) addGitPrograms(dir string) error {
	git, err := os.Stat(t["/usr/bin/git"].source)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("find git's programs: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		info, err := os.Stat(name)
		switch {
		case err != nil:
			return fmt.Errorf("find git's programs: %w", err)
		case info.IsDir(), server.MatchString(e.Name()):
		case os.SameFile(info, git), e.Name() == "git", isLinkTo(name, "git"):
			t[name] = symlink("/usr/bin/git")
		default:
			if err := t.addProgram(name, name); err != nil {
				return err
			}
		}
	}
	return nil
}

var server = regexp.MustCompile(`^git-(daemon|http-backend|http-push|http-fetch|imap-send|shell)$`)

func isLinkTo(file, name string) bool {
	to, err := filepath.EvalSymlinks(file)
	return err == nil && filepath.Base(to) == name
}

// addProgram adds a program and, where it is not there yet, what it is linked
// with.
func (t tree) addProgram(as, file string) error {
	t[as] = copyOf(file)
	all, err := libraries(file)
	if err != nil {
		return err
	}
	for _, library := range all {
		t[library] = copyOf(library)
		// Old C libraries load what they look up names with at run time.
		if strings.HasPrefix(filepath.Base(library), "libc.so") {
			for _, late := range []string{"libnss_files.so.2", "libnss_dns.so.2"} {
				name := filepath.Join(filepath.Dir(library), late)
				if _, err := os.Stat(name); err == nil {
					t[name] = copyOf(name)
				}
			}
		}
	}
	return nil
}

var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// libraries are what the loader would load for a program, the loader itself
// included: none for a script or a static program.
func libraries(program string) ([]string, error) {
	f, err := elf.Open(program)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return nil, nil // a script
	}
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	defer f.Close()
	if names, err := f.ImportedLibraries(); err != nil || len(names) == 0 {
		return nil, err
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("find libraries of %s: %w", program, err)
	}
	if bytes.Contains(out, []byte("not found")) {
		return nil, fmt.Errorf("find libraries of %s: %w: %s", program, fs.ErrNotExist, out)
	}
	var all []string
	for _, match := range library.FindAllSubmatch(out, -1) {
		all = append(all, string(match[1]))
	}
	return all, nil
}
