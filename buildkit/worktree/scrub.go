package worktree

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/layer"
)

// Bounds of what Scrub looks at. Git's configuration is a few KiB.
const (
	largestConfig = 1 << 20
	deepestModule = 64
	mostModules   = 10_000 // directories
)

// Scrubbed is what Scrub took out. It holds secrets, in memory alone.
type Scrubbed struct {
	files []scrubbed
}

type scrubbed struct {
	path    string
	content []byte
	stat    unix.Stat_t
}

// String keeps the secrets out of logs.
func (s *Scrubbed) String() string { return fmt.Sprintf("%d scrubbed files", len(s.files)) }

// Scrub takes credentials out of the git configuration in an upper directory that nobody else writes to: those in
// URLs, and all extra HTTP headers, of the repository and of its submodules. The files become others, so that what
// has a further name keeps its content.
//
// What a job hides elsewhere on purpose is not found; it is the job's own.
func Scrub(upper string) (*Scrubbed, error) {
	s := &Scrubbed{}
	if err := s.scrub(upper); err != nil {
		return nil, errors.Join(fmt.Errorf("scrub git configuration: %w", err), s.Restore(upper, nil))
	}
	return s, nil
}

func (s *Scrubbed) scrub(upper string) error {
	root, err := layer.OpenView([]string{upper})
	if err != nil {
		return err
	}
	defer root.Close()
	git, err := root.Open(".git")
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer git.Close()
	if err := s.configs(upper, ".git", git); err != nil {
		return err
	}
	modules, err := git.Open("modules")
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer modules.Close()
	left := mostModules
	return s.modules(upper, filepath.Join(".git", "modules"), modules, deepestModule, &left)
}

// gitsOwn are directories of a repository that have no other repositories in them.
var gitsOwn = []string{"branches", "hooks", "info", "lfs", "logs", "objects", "refs", "rr-cache"}

// modules scrubs repositories of submodules, whose names may have several components.
func (s *Scrubbed) modules(upper, rel string, v *layer.View, depth int, left *int) error {
	if *left--; *left < 0 || depth == 0 {
		return fmt.Errorf("%s has too many directories: %w", rel, errdefs.ErrResourceExhausted)
	}
	if err := s.configs(upper, rel, v); err != nil {
		return err
	}
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	repository := slices.ContainsFunc(entries, func(e layer.Entry) bool { return e.Name == "config" && !e.IsDir() })
	for _, e := range entries {
		if !e.IsDir() || repository && slices.Contains(gitsOwn, e.Name) {
			continue
		}
		sub, err := v.Open(e.Name)
		if err != nil {
			return err
		}
		err = s.modules(upper, filepath.Join(rel, e.Name), sub, depth-1, left)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// configs scrubs the configuration of the repository, if any, that is a directory.
func (s *Scrubbed) configs(upper, rel string, v *layer.View) error {
	for _, name := range []string{"config", "config.worktree"} {
		e, err := v.Lookup(name)
		if errdefs.IsNotFound(err) || err == nil && e.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.config(upper, filepath.Join(rel, name), &e); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(rel, name), err)
		}
	}
	return nil
}

func (s *Scrubbed) config(upper, rel string, e *layer.Entry) error {
	if e.Stat.Size > largestConfig {
		return fmt.Errorf("it is larger than %d bytes: %w", largestConfig, errdefs.ErrResourceExhausted)
	}
	f, err := os.OpenFile(e.Path(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, largestConfig))
	if err != nil {
		return err
	}
	clean := scrub(content)
	if bytes.Equal(clean, content) {
		return nil
	}
	s.files = append(s.files, scrubbed{rel, content, e.Stat})
	return write(filepath.Join(upper, rel), clean, &e.Stat)
}

var (
	password = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/"'@:]*:[^\s/"']*@`)
	// A token may stand for the user. That of ssh is a mere name.
	token  = regexp.MustCompile(`(?i)(https?://)[^\s/"']*@`)
	header = regexp.MustCompile(`(?i)(\bextraheader[ \t]*=)(?:[^\\\n]|\\\n|\\.)*`)
)

func scrub(config []byte) []byte {
	config = password.ReplaceAll(config, []byte("$1"))
	config = token.ReplaceAll(config, []byte("$1"))
	return header.ReplaceAll(config, []byte("$1"))
}

// write puts a new file in the place of one, with its owner, mode and times.
func write(path string, content []byte, like *unix.Stat_t) error {
	var parent unix.Stat_t
	if err := unix.Lstat(filepath.Dir(path), &parent); err != nil {
		return fmt.Errorf("stat %s: %w", filepath.Dir(path), err)
	}
	fresh := filepath.Join(filepath.Dir(path), ".berth-"+rand.Text())
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chown(int(like.Uid), int(like.Gid))
	}
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), like.Mode&0o7777)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = setTimes(fresh, like)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return setTimes(filepath.Dir(path), &parent)
}

// Restore puts back what Scrub took out, into the upper directory of an overlay that is not mounted: the same, or one
// upon lower layers, from the uppermost down, that hold what was scrubbed. The job sees its own configuration then.
func (s *Scrubbed) Restore(upper string, lower []string) error {
	for _, f := range s.files {
		if err := s.restore(f, upper, lower); err != nil {
			return fmt.Errorf("put back git configuration: %s: %w", f.path, err)
		}
	}
	return nil
}

func (s *Scrubbed) restore(f scrubbed, upper string, lower []string) error {
	v, err := layer.OpenView(append([]string{upper}, lower...))
	if err != nil {
		return err
	}
	defer v.Close()
	if err := parents(v, upper, filepath.Dir(f.path)); err != nil {
		return err
	}
	return write(filepath.Join(upper, f.path), f.content, &f.stat)
}

// parents makes the directories of a path in the uppermost layer as the view shows them.
func parents(v *layer.View, upper, rel string) error {
	if rel == "." {
		return nil
	}
	if err := parents(v, upper, filepath.Dir(rel)); err != nil {
		return err
	}
	dir, err := descend(v, rel)
	if err != nil {
		return err
	}
	defer dir.Close()
	if _, place := dir.Top(); place == 0 {
		return nil
	}
	path := filepath.Join(upper, rel)
	var parent unix.Stat_t
	if err := unix.Lstat(filepath.Dir(path), &parent); err != nil {
		return fmt.Errorf("stat %s: %w", filepath.Dir(path), err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := setTimes(filepath.Dir(path), &parent); err != nil {
		return err
	}
	return layer.CopyAttributes(path, dir.Path())
}

// GoString is String.
func (s *Scrubbed) GoString() string { return s.String() }
